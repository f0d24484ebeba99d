"""SIGTERM, which schedulers send before they take a machine away: a sweep hands back what it runs and may be started again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

START_AGAIN = 75  # the exit code: EX_TEMPFAIL of sysexits.h


@contextmanager
def ends_orderly() -> Iterator[Callable[[], bool]]:
    """In this block SIGTERM is noted; whether it came. Outside the main thread, which alone may ask for signals, it never did."""
    told = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        told.set()

    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
