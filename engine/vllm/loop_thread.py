"""A thread with an event loop: vLLM's client lives in one, and calls come from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from engine.errors import EngineError
from engine.own_thread import compute_on

T = TypeVar("T")


class LoopThread:
    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # Soft thoughts are computed there, on as many threads as were to be had when the engine was made.
        computing = ThreadPoolExecutor(initializer=compute_on, initargs=(torch.get_num_threads(),))
        self._loop.set_default_executor(computing)
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Cancelling the future cancels the work."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # of a loop that is closed
            work.close()
            raise EngineError("The engine is closed. Make a new one.") from error

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Blocks. Never from the loop's own thread."""
        try:
            return self.start(work).result()
        except CancelledError as error:
            raise EngineError("The engine was closed while this call ran. Make a new one.") from error

    def close(self) -> None:
        """Ends what still runs."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
