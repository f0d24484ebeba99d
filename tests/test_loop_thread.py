"""The thread that vLLM's client lives in: whoever waits for it hears of its end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import EngineError
from engine.vllm.loop_thread import LoopThread


def test_a_loop_that_is_closed_tells_who_waits_and_who_comes_later() -> None:
    thread, begun = LoopThread("graftline-test"), threading.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(thread.run, endless())
        assert begun.wait(10)
        thread.close()
        with pytest.raises(EngineError, match="closed while this call ran"):
            waiting.result(10)
    with pytest.raises(EngineError, match="Make a new one"):
        thread.run(endless())
