"""The step loop: one thread that owns every forward, takes calls between steps and steps while rows run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from engine.errors import EngineError
from engine.own_thread import compute_on
from engine.scheduler import Scheduler

T = TypeVar("T")
PAUSE_S = 0.005  # calls that are begun between two steps take no longer together, or are one


class StepLoop:
    """Runs until closed. Every step and every call holds the engine's lock."""

    def __init__(self, scheduler: Scheduler, lock: threading.RLock, num_threads: int) -> None:
        """`num_threads`: of PyTorch, for every forward; other threads keep the number that they have."""
        self._scheduler = scheduler
        self._lock = lock
        self._num_threads = num_threads
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._woken = threading.Condition()
        self._stepped = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="graftline-steps", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Runs the work between two steps."""
        future: Future[T] = Future()
        with self._woken:
            if self._closed:
                raise EngineError("The engine is closed. Make a new one.")
            self._calls.append((work, future))
            self._woken.notify()
        return future

    def wait_for(self, submit: Callable[[], object], is_finished: Callable[[], bool]) -> None:
        """Runs `submit` between two steps, then waits until `is_finished` holds after a step."""
        self.call(submit).result()
        with self._stepped:
            self._stepped.wait_for(lambda: self._closed or is_finished())
        if not is_finished():
            raise EngineError("The engine was closed while these requests ran. Make a new one.")

    def close(self) -> None:
        with self._woken:
            self._closed = True
            self._woken.notify()
        self._thread.join()

    def _work(self) -> None:
        compute_on(self._num_threads)
        while True:
            with self._woken:
                self._woken.wait_for(lambda: self._closed or self._calls or self._scheduler.is_busy)
                if self._closed:
                    break
            with self._lock:
                self._take_calls()
                self._step()
            with self._stepped:
                self._stepped.notify_all()
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError("The engine was closed before this call ran. Make a new one."))
        self._calls.clear()
        with self._stepped:
            self._stepped.notify_all()

    def _take_calls(self) -> None:
        """Those that wait now: requests that came together join together, and a long call lets a step pass before the next."""
        began = time.monotonic()
        for _ in range(len(self._calls)):
            _run(*self._calls.popleft())
            if time.monotonic() - began > PAUSE_S:
                break

    def _step(self) -> None:
        if not self._scheduler.is_busy:
            return
        try:
            self._scheduler.step()
        except Exception as error:  # whoever waits must hear of it, and the loop must serve the next
            self._scheduler.fail(error)


def _run(work: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    finally:
        # An error holds this frame: with the future in it that would be a cycle, kept until the collector comes by.
        del work, future
