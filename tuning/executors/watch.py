"""Waits for workers: tells what becomes of each, and ends them in an orderly way when this process is to end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tuning.executors.executor import DONE, START_AGAIN, STOPPED, Executor, WorkerState

_TOLD = {
    "runs": "worker {number} started again ({restarts})",
    "waits": "worker {number} died ({exit}); it is started again, {reason}",
    "done": "worker {number} found the study complete",
    "stopped": "worker {number} stopped on an error, {reason}",
    "given up": "worker {number} died too often ({exit}) and is given up, {reason}",
    "ended": "worker {number} was ended",
}


class _Terminated(BaseException):
    """SIGTERM came."""


def watch(
    executor: Executor,
    num_workers: int,
    say: Callable[[str], None],
    poll_s: float = 0.5,
    was_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Starts workers and waits until all are over; call it from the main thread.

    0 where the study is complete, or `was_stopped`, or where a scheduler took over; 75 after SIGTERM; 1 where every worker
    stopped or was given up.
    Ctrl-C ends the workers too, and then the caller.
    """
    told: dict[int, WorkerState] = {}
    with _terminable():
        try:
            say(executor.start(num_workers))
            while states := executor.poll():
                for state in states:
                    if state != told.get(state.number):
                        _tell(state, told.get(state.number), say, was_stopped)
                        told[state.number] = state
                if all(state.is_over for state in states):
                    return DONE if any(state.phase == "done" for state in states) else STOPPED
                time.sleep(poll_s)
            return DONE
        except _Terminated:
            say("SIGTERM: the workers end their trials, which others take up")
            return START_AGAIN
        finally:
            with _undisturbed():
                executor.stop()


def _tell(state: WorkerState, before: WorkerState | None, say: Callable[[str], None], was_stopped: Callable[[], bool]) -> None:
    if before is None and state.phase == "runs":
        return
    if state.phase == "done" and was_stopped():  # it ends as it does where the study is complete
        say(f"worker {state.number} ended, since the study was stopped")
        return
    ended = state.exit_code
    how = "" if ended is None else f"signal {-ended}" if ended < 0 else f"exit code {ended}"
    text = _TOLD[state.phase].format(
        number=state.number, restarts=state.restarts, exit=how or "no exit code", reason=state.reason
    )
    say(text.removesuffix(", "))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds what runs in here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_: int, __: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second SIGTERM changes nothing: workers have their time and are then killed anyway. A second Ctrl-C kills them now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
