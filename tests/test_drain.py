"""Going away: what runs ends, what comes is sent elsewhere, and it takes no longer than the grace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from live_service import live, small
from running_service import PROMPT
from stores import store_at

from service.drain import Drain
from service.serve import start_server
from service.settings import Settings


def streamed(client: openai.OpenAI, model: str, has_begun: Callable[[], None] = lambda: None) -> str | None:
    """How a stream that takes about a second has ended; None where it was cut off."""
    reason = None
    for chunk in client.completions.create(model=model, prompt=PROMPT, max_tokens=400, stream=True):
        has_begun()
        reason = chunk.choices[0].finish_reason or reason
    return None if reason is None else "ended"


def test_once_it_has_begun_nothing_new_is_taken_and_what_runs_ends(tmp_path: Path, backbone_directory: Path, base: str) -> None:
    store_at(tmp_path)
    begun = threading.Event()
    with live(small(backbone_directory, tmp_path)) as server, ThreadPoolExecutor(1) as pool:
        client = openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)
        stream = pool.submit(streamed, client, base, begun.set)
        assert begun.wait(30), stream.exception(0)
        drain: Drain = server.app.state.drain
        drain.begin()
        assert drain.running == 1
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/livez").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model=base, prompt=PROMPT, max_tokens=1)
        assert (refused.value.status_code, refused.value.code) == (503, "going_away")
        assert refused.value.response.headers["retry-after"] == "5"
        assert stream.result() == "ended"
        ends = time.monotonic() + 10
        while drain.running and time.monotonic() < ends:
            time.sleep(0.005)  # the reply has been read a moment before its request is over
        assert drain.running == 0


def test_a_drain_with_nothing_running_is_over_at_once() -> None:
    async def drained() -> bool:
        drain = Drain()
        drain.begin()
        return await drain.ended(grace_s=60)

    assert asyncio.run(drained())


def test_what_outlasts_the_grace_is_cut_off() -> None:
    async def drained() -> tuple[bool, bool]:
        drain = Drain()
        slow: asyncio.Task[object] = asyncio.create_task(asyncio.sleep(60))
        drain.enter(slow)
        drain.begin()
        is_over = await drain.ended(grace_s=0.05)
        await asyncio.wait([slow])
        return is_over, slow.cancelled()

    assert asyncio.run(drained()) == (False, True)


def test_a_reply_that_is_begun_as_the_grace_ends_is_cut_at_once() -> None:
    async def late() -> list[str]:
        drain, heard = Drain(), list[str]()
        drain.enter(asyncio.create_task(asyncio.sleep(0)))
        drain.begin()
        ending = asyncio.create_task(drain.ended(grace_s=0))
        await asyncio.sleep(0.1)
        drain.will_cut(lambda error: heard.append(error.code))
        drain.leave(next(iter(drain._running)))
        await ending
        return heard

    assert asyncio.run(late()) == ["going_away"]


def test_a_reply_that_outlasts_the_grace_ends_with_an_error_that_its_client_can_read(
    tmp_path: Path, backbone_directory: Path, base: str
) -> None:
    store_at(tmp_path)
    with live(small(backbone_directory, tmp_path)) as server, ThreadPoolExecutor(2) as pool:
        client = openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0, timeout=60)
        begun = threading.Event()
        endless = {"prompt": PROMPT, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
        stream = pool.submit(streamed, client, base, begun.set)
        assert begun.wait(30), stream.exception(0)
        whole = pool.submit(client.completions.create, model=base, n=8, **endless)  # type: ignore[call-overload]
        while server.app.state.drain.running < 2:
            time.sleep(0.005)
        drain: Drain = server.app.state.drain
        drain.begin()
        loop = server.app.state.beside[0].get_loop()
        over = asyncio.run_coroutine_threadsafe(drain.ended(grace_s=0), loop)
        with pytest.raises(openai.APIError) as cut:
            stream.result()
        assert cut.value.code == "going_away" and "was not done in time" in str(cut.value)
        with pytest.raises(openai.InternalServerError) as refused:
            whole.result()
        assert (refused.value.status_code, refused.value.code) == (503, "going_away")
        assert over.result(10) is False
        assert not drain._cuts


@pytest.mark.slow
@pytest.mark.parametrize(("grace_s", "ending"), [(60.0, "ended"), (0.3, "cut off")])
def test_sigterm_ends_the_service_within_its_grace(
    tmp_path: Path, backbone_directory: Path, base: str, grace_s: float, ending: str
) -> None:
    store_at(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        backbone=str(backbone_directory), device="cpu", home=tmp_path, port=port, threads=1, max_rows=4, grace_s=grace_s
    )
    with start_server(settings, log_file=tmp_path / "log", timeout_s=400) as server, ThreadPoolExecutor(16) as pool:
        client = openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)
        begun = threading.Event()
        # More than one batch of them: the last begin when the first have ended.
        streams = [pool.submit(_ending, client, base, begun.set) for _ in range(16)]
        assert begun.wait(60)
        os.kill(server.process_id, signal.SIGTERM)
        told = time.monotonic()
        if ending == "ended":
            while httpx.get(f"{server.url}/readyz").status_code == 200:
                assert time.monotonic() - told < 10
            refused = httpx.post(f"{server.openai_url}/completions", json={"model": base, "prompt": "x"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert ending in {stream.result() for stream in streams}
        if ending == "ended":
            assert {stream.result() for stream in streams} == {"ended"}
        while _is_running(server.process_id):
            assert time.monotonic() - told < grace_s + 20
            time.sleep(0.1)


def _ending(client: openai.OpenAI, model: str, has_begun: Callable[[], None]) -> str | None:
    try:
        return streamed(client, model, has_begun) or "cut off"
    except (openai.APIError, httpx.HTTPError):
        return "cut off"


def _is_running(process_id: int) -> bool:
    """The test's own child stays a zombie until `start_server` looks at it."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True).stdout.strip()
    return bool(shown) and not shown.startswith("Z")
