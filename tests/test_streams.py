"""Streams: comments while nothing comes, usage on the way, failures in the middle, and readers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop
from live_service import Live, live, small
from saying_engine import SayingEngine
from starlette.types import Message

from engine.engine import Delta, GenerationRequest
from service.deadline import Allowed
from service.errors import ApiError
from service.models import ServedModels
from service.openai_shapes import Reply
from service.streaming import EventStream, Streaming, events
from service.writing import Writing

TEXT = "Zwölf plus fünf ist siebzehn: 十二加五 🙂\u2028Ende."


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(small(backbone_directory, tmp_path_factory.mktemp("streams"), ping_s=0.05)) as server:
        server.app.state.parts = replace(server.parts, engine=SayingEngine(server.parts.backbone))
        yield server


@pytest.fixture
def engine(server: Live) -> SayingEngine:
    engine = server.parts.engine
    assert isinstance(engine, SayingEngine)
    engine.text, engine.waits_s, engine.fails_after, engine.num_written = TEXT, 0.0, None, 0
    return engine


def streamed(server: Live, base: str, **fields: Any) -> httpx.Response:
    body = {"model": base, "prompt": "Add 5.", "max_tokens": 200, "stream": True, **fields}
    return httpx.post(f"{server.openai_url}/completions", json=body)


def chunks_of(reply: httpx.Response) -> list[dict[str, Any]]:
    events = [event for event in reply.text.split("\n\n") if event.startswith("data: ") and not event.endswith("[DONE]")]
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_silent_stream_sends_comments(server: Live, engine: SayingEngine, base: str) -> None:
    engine.waits_s = 0.3
    reply = streamed(server, base)
    assert reply.text.startswith(": ping\n\n: ping\n\n")
    assert reply.text.split("\n\n")[-4].startswith("data: {") and reply.text.endswith("data: [DONE]\n\n")


def test_a_busy_stream_sends_none(server: Live, engine: SayingEngine, base: str) -> None:
    assert ": ping" not in streamed(server, base).text


def test_comments_do_not_disturb_a_client(server: Live, engine: SayingEngine, base: str) -> None:
    engine.waits_s = 0.2
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        stream = client.completions.create(model=base, prompt="Add 5.", max_tokens=200, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == TEXT


def test_an_error_behind_a_comment_is_an_event(server: Live, engine: SayingEngine, base: str) -> None:
    engine.waits_s, engine.fails_after = 0.2, 0
    reply = streamed(server, base)
    assert reply.status_code == 200 and "[DONE]" not in reply.text
    assert chunks_of(reply)[-1]["error"]["code"] == "engine_error"


def test_an_error_before_anything_was_sent_has_its_status(server: Live, engine: SayingEngine, base: str) -> None:
    engine.fails_after = 0
    assert streamed(server, base).status_code == 500


def test_an_error_in_mid_stream_is_raised_by_the_client(server: Live, engine: SayingEngine, base: str) -> None:
    engine.fails_after = 3
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        stream = client.completions.create(model=base, prompt="Add 5.", max_tokens=200, stream=True)
        with pytest.raises(openai.APIError, match="The engine failed"):
            list(stream)


def test_characters_of_several_bytes_are_whole(server: Live, engine: SayingEngine, base: str) -> None:
    chunks = chunks_of(streamed(server, base))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks)


def test_every_line_is_one_to_every_reader(server: Live, engine: SayingEngine, base: str) -> None:
    # httpx and others break lines at more characters than the standard of event streams does.
    lines = streamed(server, base).text.splitlines()
    assert all(line == "" or line.startswith("data: ") for line in lines)


def test_usage_is_told_on_the_way(server: Live, engine: SayingEngine, base: str) -> None:
    chunks = chunks_of(streamed(server, base, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == counts[-2] == engine.num_written
    assert chunks[-1]["choices"] == []


def test_usage_is_told_at_the_end_alone_unless_asked(server: Live, engine: SayingEngine, base: str) -> None:
    chunks = chunks_of(streamed(server, base, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1]) and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all("usage" not in chunk for chunk in chunks_of(streamed(server, base)))


def test_no_proxy_is_let_buffer_a_stream(server: Live, engine: SayingEngine, base: str) -> None:
    headers = streamed(server, base).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_reply_that_nobody_reads_is_ended(server: Live, engine: SayingEngine) -> None:
    engine.text = "Add 5. " * 100

    async def unread() -> list[str]:
        writing = await new_writing(server.parts.models, engine)
        stream = events(writing, REPLY, Streaming(max_unread=10))
        told = [await anext(stream)]
        await asyncio.sleep(0.2)
        assert engine.num_written <= 12 and engine.num_running == 0  # its row is free while nobody reads
        return told + [event async for event in stream]

    told = asyncio.run(unread())
    assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "reply_not_read"


def test_a_client_that_takes_nothing_is_left(server: Live, engine: SayingEngine) -> None:
    engine.text = "Add 5. " * 100
    sent = []

    async def stuck(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def hanging() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def leave() -> bool:
        writing = await new_writing(server.parts.models, engine)
        stream = events(writing, REPLY, Streaming(max_unread=10))
        response = await EventStream.started(stream, send_timeout_s=0.05)
        await asyncio.wait_for(response({"type": "http", "asgi": {"spec_version": "2.3"}}, hanging, stuck), 5)
        await asyncio.sleep(0)
        return writing.ended_s is not None

    assert asyncio.run(leave()) and len(sent) == 2 and engine.num_running == 0


@pytest.mark.parametrize("ping_s", [None, 0.005])
def test_a_deadline_ends_a_reply_however_early_its_timer_comes(server: Live, ping_s: float | None) -> None:
    """Timers of uvloop, which serves, are of whole milliseconds: rounded down, they come before the deadline."""

    async def never(request: GenerationRequest) -> AsyncIterator[Delta]:
        await asyncio.Event().wait()
        yield Delta("")

    async def outcomes() -> list[tuple[str, str]]:
        found = []
        for _ in range(40):
            lease = await server.parts.models.lease(server.parts.models.backbone_id)
            writing = Writing(never, lease, (GenerationRequest((5, 6)),), Allowed(0.0114))
            try:
                async with contextlib.aclosing(writing.deltas(ping_s)) as deltas:
                    async for _, delta in deltas:
                        assert delta is None and ping_s is not None
            except ApiError as error:
                found.append((error.code, writing.outcome))
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(outcomes()) == [("timeout", "timeout")] * 40


REPLY = Reply(id="cmpl-1", object="text_completion", created=1, model="law@2", system_fingerprint="fp_0")


async def new_writing(models: ServedModels, engine: SayingEngine) -> Writing:
    lease = await models.lease(models.backbone_id)
    return Writing(engine.generate, lease, (GenerationRequest((5, 6), max_new_tokens=400),), Allowed(60.0))


def test_a_failure_before_anything_was_sent_is_raised(server: Live, engine: SayingEngine) -> None:
    engine.fails_after = 0

    async def started() -> None:
        await EventStream.started(events(await new_writing(server.parts.models, engine), REPLY, Streaming()))

    with pytest.raises(ApiError, match="The engine failed"):
        asyncio.run(started())
