"""A file or directory that is there is whole: what is written stands beside it until it is done, and takes its place at once."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART = ".part"


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path to write to. It becomes the file at the end, or goes away where the writing fails; a kill leaves it behind.

    Several processes and threads may write the same file: one of them is last, and its text stands whole.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}{_PART}")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory to write into. It becomes `directory`, which is not there yet, at the end, or goes away where that fails."""
    part = directory.with_name(f".{directory.name}{_PART}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_part(file: Path) -> bool:
    """Whether it was left behind by a writer that was killed."""
    return file.name.startswith(".") and file.name.endswith(_PART)
