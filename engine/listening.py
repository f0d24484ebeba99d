"""Listening to a row from an event loop: deltas as they are written, and the row freed when nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial

from engine.engine import Delta
from engine.loop import StepLoop
from engine.row import Listener, Row


async def deltas_of(loop: StepLoop, submit: Callable[[Listener], Row]) -> AsyncGenerator[Delta, None]:
    """What the row says that `submit` makes between two steps; closing this frees the row at the next."""
    heard: asyncio.Queue[Delta | Exception] | None = asyncio.Queue()
    assert heard is not None
    submitted: Future[Row] | None = loop.call(partial(submit, partial(_tell, asyncio.get_running_loop(), heard)))
    assert submitted is not None
    said: Delta | Exception | None = None
    try:
        await asyncio.wrap_future(submitted)
        while True:
            said = await heard.get()
            if isinstance(said, Exception):
                raise said
            yield said
            if said.finish_reason is not None:
                return
    finally:
        submitted.add_done_callback(_cancel_row)
        # An error that goes through here holds this frame, and must not be held by it.
        submitted = heard = said = None


def _tell(loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[Delta | Exception], said: Delta | Exception) -> bool:
    try:
        loop.call_soon_threadsafe(heard.put_nowait, said)
    except RuntimeError:  # the event loop is closed
        return False
    return True


def _cancel_row(submitted: Future[Row]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancelled = True
