"""A lock on the files of a trial: while they are read for a release, no worker removes them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuning.errors import NothingToPublish


@contextmanager
def being_read(directory: Path) -> Iterator[None]:
    """Keeps the files of a trial from being removed meanwhile. NothingToPublish where they just were."""
    try:
        opened = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        opened = -1
    try:
        if opened >= 0:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_SH)
        if opened < 0 or not directory.is_dir():
            raise NothingToPublish(
                f"What is published is a directory of adapter files, but {directory} is not there, or no longer. "
                "`graftline sweep status` says which trials have theirs."
            )
        yield
    finally:
        if opened >= 0:
            os.close(opened)
