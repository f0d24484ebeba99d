"""Uploaded files: training data as JSONL or CSV, checked line by line before it is kept."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.whole_file import whole_directory, write_whole
from service.errors import ApiError
from service.jobs.rows import check_rows
from service.jobs.store import ordered_id

PURPOSE = "fine-tune"
FILE = "file.json"
_ENDINGS = (".jsonl", ".csv")
_ABANDONED_S = 3600.0  # without a byte: what is written or checked that slowly has no writer any more


class UploadedFile(BaseModel):
    """What `/v1/files` tells of a file. Never changed."""

    model_config = ConfigDict(frozen=True)

    id: str
    bytes: int
    created_at: int
    filename: str
    rows: int

    @property
    def ending(self) -> str:
        return Path(self.filename).suffix.lower()

    def wire(self) -> dict[str, object]:
        told = {"object": "file", "purpose": PURPOSE, "status": "processed", "status_details": None, "expires_at": None}
        return {**self.model_dump(), **told}


class Uploads:
    """A directory a file, whole or not there. Calls block."""

    def __init__(self, directory: Path, max_bytes: int, max_total_bytes: int) -> None:
        self._directory, self.max_bytes, self._max_total = directory, max_bytes, max_total_bytes
        self._counting = threading.Lock()
        self._coming: dict[str, int] = {}  # bytes of files that are being written here, by their id

    def keep(self, filename: str, purpose: str, content: BinaryIO) -> UploadedFile:
        """The file, once every line of it was read. ApiError names the first line that is wrong."""
        if purpose != PURPOSE:
            raise ApiError(400, f"A file has the purpose {PURPOSE!r}, but got {purpose!r}.", "invalid_value", "purpose")
        name = Path(filename.replace("\\", "/")).name
        if not name.lower().endswith(_ENDINGS) or not name.isprintable() or len(name) > 255:
            message = f"Training data is a file NAME.jsonl or NAME.csv, but got {filename[:255]!r}. Convert or rename it."
            raise ApiError(400, message, "invalid_file", "file")
        size = content.seek(0, os.SEEK_END)
        if size > self.max_bytes:
            raise too_large(self.max_bytes)
        file_id = ordered_id("file")
        with self._room_for(file_id, size):
            return self._kept(file_id, name, size, content)

    def sweep(self) -> None:
        """What a killed process left half-written goes away. What changed in the last hour stays: another may write it still."""
        for part, (_, changed_at) in self._parts().items():
            if time.time() - changed_at > _ABANDONED_S:
                shutil.rmtree(part, ignore_errors=True)

    def _kept(self, file_id: str, name: str, size: int, content: BinaryIO) -> UploadedFile:
        content.seek(0)
        self._directory.mkdir(parents=True, exist_ok=True)
        with whole_directory(self._directory / file_id) as part:
            stored = part / f"content{Path(name).suffix.lower()}"
            with stored.open("wb") as written:
                shutil.copyfileobj(content, written, 2**20)
            kept = UploadedFile(id=file_id, bytes=size, created_at=int(time.time()), filename=name, rows=check_rows(stored, name))
            write_whole(part / FILE, kept.model_dump_json())
        return kept

    def find(self, file_id: str) -> UploadedFile | None:
        if not file_id.startswith("file-") or not file_id.removeprefix("file-").isalnum():
            return None
        try:
            return UploadedFile.model_validate_json((self._directory / file_id / FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def all(self) -> Iterator[UploadedFile]:
        """Newest first."""
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        for name in sorted(names, reverse=True):
            if (found := self.find(name)) is not None:
                yield found

    def content(self, file: UploadedFile) -> Path:
        return self._directory / file.id / f"content{file.ending}"

    def delete(self, file: UploadedFile) -> None:
        """A job that was made from it has its rows already."""
        # Out of sight first: a reader finds all of it, or nothing.
        gone = self._directory / f".{file.id}.part"
        with suppress(FileNotFoundError):
            (self._directory / file.id).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _parts(self) -> dict[Path, tuple[int, float]]:
        """Files that are half-written, or half-deleted: their bytes, and when they changed last."""
        found = {}
        for part in self._directory.glob(".file-*.part"):
            with suppress(FileNotFoundError):  # it is whole now, or gone
                states = [each.stat() for each in (part, *part.iterdir())]
                found[part] = sum(state.st_size for state in states[1:]), max(state.st_mtime for state in states)
        return found

    def _held(self) -> int:
        """Bytes on the disk, those of other processes' half-written files too."""
        parts = (size for part, (size, _) in self._parts().items() if part.name[1:-5] not in self._coming)
        return sum(file.bytes for file in self.all()) + sum(parts)

    @contextmanager
    def _room_for(self, file_id: str, size: int) -> Iterator[None]:
        """Of several files that come at one time, each counts from its first byte."""
        with self._counting:
            if self._held() + sum(self._coming.values()) + size > self._max_total:
                message = f"All files together may have {self._max_total} bytes. Delete one that is no longer needed."
                raise ApiError(413, message, "too_many_bytes", "file")
            self._coming[file_id] = size
        try:
            yield
        finally:
            with self._counting:
                del self._coming[file_id]


def too_large(max_bytes: int) -> ApiError:
    message = f"A file may have {max_bytes} bytes, but this one has more. Send fewer rows, or raise GRAFTLINE_MAX_FILE_BYTES."
    return ApiError(413, message, "file_too_large", "file")
