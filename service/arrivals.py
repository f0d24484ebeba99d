"""Files that arrive in a directory: which of them are whole, and a mark beside each that was taken in or rejected.

Looked at by their sizes and times alone, so that a network file system will do. A writer either renames a file into place, or
writes it under a name that is passed over (NAME.part, .NAME) or where it lies: then it is whole once two looks agree.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adapters.whole_file import write_whole

SUFFIXES = (".jsonl", ".csv", ".parquet")
Mark = Literal["processed", "rejected"]
MARKS: tuple[Mark, ...] = ("processed", "rejected")


class Look(NamedTuple):
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Arrivals:
    directory: Path

    def look(self) -> dict[Path, Look]:
        """The files of rows as they are now, oldest first; empty and hidden ones are no files yet."""
        found: list[tuple[Look, Path]] = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                    continue
                try:
                    stat, is_file = entry.stat(), entry.is_file()
                except OSError:  # taken away between the two calls, or a link that leads nowhere
                    continue
                if is_file and stat.st_size:
                    found.append((Look(stat.st_size, stat.st_mtime_ns), Path(entry.path)))
        return {file: look for look, file in sorted(found, key=lambda one: (one[0].mtime_ns, one[1].name))}

    def ready(self, before: Mapping[Path, Look], now: Mapping[Path, Look]) -> list[Path]:
        """Those that two looks in a row saw alike and that carry no mark."""
        return [file for file, look in now.items() if before.get(file) == look and self.marked(file, look) is None]

    def marked(self, file: Path, look: Look) -> Mark | None:
        """The mark of these very contents; a file that was written anew has none. One that was only touched keeps its own."""
        for mark in MARKS:
            told = _read(_mark_file(file, mark))
            if told is None:
                continue
            if (told.get("size"), told.get("mtime_ns")) == look:
                return mark
            if told.get("size") == look.size and told.get("sha256") == sha256_of(file):
                self.mark(file, look, mark, {key: told[key] for key in told.keys() - {"size", "mtime_ns", "sha256"}})
                return mark
        return None

    def mark(self, file: Path, look: Look, mark: Mark, told: Mapping[str, Any]) -> None:
        stored = {"size": look.size, "mtime_ns": look.mtime_ns, "sha256": sha256_of(file), **told}
        write_whole(_mark_file(file, mark), json.dumps(stored, indent=2))
        for other in MARKS:
            if other != mark:
                _mark_file(file, other).unlink(missing_ok=True)


@dataclass
class Waiting:
    """Files that are to be tried again, each later than the time before; `clock` gives seconds."""

    first_s: float
    clock: Callable[[], float]
    longest_s: float = 600.0

    def __post_init__(self) -> None:
        self._tries: dict[Path, tuple[int, float]] = {}

    def again(self, file: Path) -> int:
        """How often it was put off, this time among them."""
        tries = self._tries.get(file, (0, 0.0))[0] + 1
        self._tries[file] = (tries, self.clock() + min(self.longest_s, self.first_s * 2 ** (tries - 1)))
        return tries

    def is_due(self, file: Path) -> bool:
        return file not in self._tries or self.clock() >= self._tries[file][1]

    def done(self, file: Path) -> None:
        self._tries.pop(file, None)

    def keep(self, files: Collection[Path]) -> None:
        """Forgets those that are no longer there."""
        self._tries = {file: tries for file, tries in self._tries.items() if file in files}

    def __bool__(self) -> bool:
        return bool(self._tries)


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mark_file(file: Path, mark: Mark) -> Path:
    return file.with_name(f"{file.name}.{mark}.json")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
