"""Going away in order: no longer ready first, then what runs ends while whatever comes is sent elsewhere, then the exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError

log = logging.getLogger("graftline.drain")
RETRY_AFTER_S = 5
CUT_S = 1.0  # for whoever is cut off to hear of it
Cut = Callable[[ApiError], None]
"""Ends what is being written with an error that its reader hears."""
_OPEN = ("/livez", "/readyz", "/healthz", "/metrics")


class Drain:
    """Begins once and is not taken back. Used from the event loop alone."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()
        self._begun = False
        self._emptied = asyncio.Event()
        self._cuts: set[Cut] = set()
        self._is_over = False  # the grace

    @property
    def is_begun(self) -> bool:
        return self._begun

    @property
    def running(self) -> int:
        return len(self._running)

    def begin(self) -> None:
        if not self._begun:
            log.info("No request is taken any more; %d still run", self.running)
            self._begun = True
            self._look()

    def enter(self, task: asyncio.Task[object]) -> None:
        self._running.add(task)

    def leave(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        self._look()

    def will_cut(self, cut: Cut) -> None:
        """Called at the end of the grace, unless `is_done` with it; at once where the grace is over already."""
        self._cuts.add(cut)
        if self._is_over:
            cut(_too_late())

    def is_done(self, cut: Cut) -> None:
        self._cuts.discard(cut)

    async def ended(self, grace_s: float) -> bool:
        """Once nothing runs any more, or after the grace, when what still runs is cut off and the answer is False."""
        try:
            await asyncio.wait_for(self._emptied.wait(), grace_s)
        except TimeoutError:
            log.warning("%d requests still run after %g s and are cut off", self.running, grace_s)
            self._is_over = True
            for cut in tuple(self._cuts):
                cut(_too_late())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), CUT_S)
            for task in self._running:
                task.cancel()
            return False
        return True

    def _look(self) -> None:
        if self._begun and not self._running:
            self._emptied.set()


class Draining:
    """Plain ASGI: counts what runs, to the last byte of its reply, and refuses what comes while the service goes away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        drain = drain_of(scope["app"]) if scope["type"] == "http" else None
        task = asyncio.current_task()
        if drain is None or task is None or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
        elif drain.is_begun:
            error = going_away("This server is going away.")
            await JSONResponse(error.body(), error.status, dict(error.headers))(scope, receive, send)
        else:
            drain.enter(task)
            try:
                await self._app(scope, receive, send)
            finally:
                drain.leave(task)


def going_away(rule: str) -> ApiError:
    message = f"{rule} Ask again: another one, or the one that takes its place, answers."
    headers = {"retry-after": str(RETRY_AFTER_S), "connection": "close"}
    return ApiError(503, message, "going_away", None, "server_error", headers)


def _too_late() -> ApiError:
    return going_away("This server is going away, and the reply was not done in time.")


def drain_of(app: FastAPI) -> Drain | None:
    """None before the service has started."""
    drain: Drain | None = getattr(app.state, "drain", None)
    return drain


def drain_on_sigterm(drain: Drain, grace_s: float) -> None:
    """From now on SIGTERM drains first and then does what it did before; a second one does that at once.

    Call it in the event loop. Outside of the main thread nothing is changed: there whoever runs the loop has the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()
    kept: list[asyncio.Task[None]] = []

    def pass_on() -> None:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    async def drained() -> None:
        await drain.ended(grace_s)
        if signal.getsignal(signal.SIGTERM) is heard:
            pass_on()

    def begin() -> None:
        drain.begin()
        kept.append(loop.create_task(drained()))

    def heard(number: int, frame: FrameType | None) -> None:
        if drain.is_begun:
            pass_on()
        else:
            loop.call_soon_threadsafe(begin)

    signal.signal(signal.SIGTERM, heard)
