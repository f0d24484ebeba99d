"""A journal: one JSON object a line, appended as work is done, so that what was killed goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from registry.claim import held
from tuning.errors import DamagedStudy, StudyIsRunning


@dataclass(frozen=True)
class Journal:
    file: Path

    def append(self, entry: dict[str, Any]) -> None:
        """On disk when this returns."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # what the backbone wrote is kept for all: workers of a sweep append to one file
            _drop_torn_line(out)
            out.write(f"{json.dumps(entry)}\n".encode())
            out.flush()
            os.fsync(out.fileno())

    def entries(self) -> list[dict[str, Any]]:
        """All that were written whole, in order."""
        if not self.file.is_file():
            return []
        *whole, _ = self.file.read_text(errors="replace").split("\n")
        return [self._entry(number, line) for number, line in enumerate(whole, start=1)]

    def _entry(self, number: int, line: str) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise DamagedStudy(
                f"A journal has one JSON object a line, but line {number} of {self.file} is none. Delete that line: what it held "
                "is made again."
            )
        return entry


def _drop_torn_line(out: BinaryIO) -> None:
    """A kill in the middle of a line leaves one without an end; what follows must not be glued to it."""
    if not out.seek(0, os.SEEK_END):
        return
    out.seek(-1, os.SEEK_END)
    if out.read(1) != b"\n":
        out.seek(0)
        out.truncate(out.read().rfind(b"\n") + 1)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Holds a study's folder, since two processes that append to its journals would cut each other's lines. StudyIsRunning."""
    with held(directory / "lock") as holder:
        if holder:
            raise StudyIsRunning(
                f"A study is run by one process at a time, but {holder} runs the one in {directory} now. Wait for it: what it "
                "fits is kept, and the same command then reads it."
            )
        yield
