"""Server-sent events: the chunks of a reply, and a response that frees its rows when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import JsonValue
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.errors import ApiError
from service.logprobs import ChoiceLog
from service.openai_shapes import Choice, Reply, StreamOptions
from service.reply_parts import ReplyParts
from service.settings import Settings
from service.writing import Writing

T = TypeVar("T")
log = logging.getLogger("graftline.streaming")
_POLL_S = 0.1
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_DONE = "data: [DONE]\n\n"
_PING = ": ping\n\n"  # a comment to every reader; proxies see that the connection lives


@dataclass(frozen=True)
class Streaming:
    """How one reply is streamed. `max_unread`: see `Writing.deltas`; `send_timeout_s`: for the client to take one event."""

    include_usage: bool = False
    continuous_usage: bool = False
    ping_s: float | None = None
    max_unread: int | None = None
    send_timeout_s: float | None = None

    @classmethod
    def of(cls, asked: StreamOptions | None, settings: Settings) -> Streaming:
        asked = asked or StreamOptions()
        continuous = asked.include_usage and asked.continuous_usage_stats
        return cls(asked.include_usage, continuous, settings.ping_s, settings.max_unread, settings.send_timeout_s)


async def events(
    writing: Writing,
    reply: Reply,
    options: Streaming,
    parts: Sequence[ReplyParts] = (),
    logs: Sequence[ChoiceLog] = (),
    echoes: Sequence[str] = (),
) -> AsyncGenerator[str, None]:
    """The whole stream. What fails before anything was sent is raised; what fails later is an event.

    `parts`: one a choice of a chat. `logs`, `echoes`: one a choice, where they are asked for.
    """
    is_chat = reply.object == "chat.completion.chunk"
    is_open, named = False, set[int]()
    echo = dict(enumerate(echoes))  # what is not sent yet

    def chunk(*choices: Choice, last: bool = False) -> str:
        # How the reply was made is told where a choice ends.
        told = writing.told() if any(choice.finish_reason for choice in choices) else None
        usage = writing.usage if last or options.continuous_usage else None
        return _event(reply.wire(choices, usage, with_usage=options.include_usage, told=told))

    try:
        async with contextlib.aclosing(writing.deltas(options.ping_s, options.max_unread)) as deltas:
            async for index, delta in deltas:
                is_open = True
                if delta is None:
                    yield _PING
                    continue
                if is_chat and index not in named:
                    named.add(index)
                    yield chunk(Choice(index=index, delta={"role": "assistant", "content": ""}))
                reason: str | None = delta.finish_reason
                logprobs = logs[index].add(delta) if logs else None
                if is_chat:
                    pieces = parts[index].wire(parts[index].add(delta)) or ([{"content": ""}] if logprobs else [])
                    for place, piece in enumerate(pieces):
                        yield chunk(Choice(index=index, delta=piece, logprobs=None if place else logprobs))
                    reason = None if reason is None else parts[index].finish_reason(reason)
                elif (text := echo.pop(index, "") + delta.text) or logprobs:
                    yield chunk(Choice(index=index, text=text, logprobs=logprobs))
                if reason is not None:
                    end = Choice(index=index, delta={}) if is_chat else Choice(index=index, text="")
                    yield chunk(end.model_copy(update={"finish_reason": reason}))
    except ApiError as error:
        if not is_open:
            raise
        yield _event({**error.body()})
        return
    if options.include_usage:
        yield chunk(last=True)
    yield _DONE


# Characters that are ends of a line to some readers of streams, though not to the standard: escaped, as JSON may.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def _event(body: dict[str, JsonValue] | dict[str, dict[str, str | None]]) -> str:
    text = json.dumps(body, ensure_ascii=False)
    return f"data: {text if text.isascii() else text.translate(_LINE_ENDS)}\n\n"


class _Started:
    """An asynchronous iterator whose first item was taken already."""

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        self._first: str | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        first, self._first = self._first, None
        return first if first is not None else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


class EventStream(StreamingResponse):
    """Ends its generator with the connection, also when the client left before the first byte."""

    def __init__(self, stream: _Started, send_timeout_s: float | None, headers: Mapping[str, str] | None) -> None:
        super().__init__(stream, media_type="text/event-stream", headers={**_HEADERS, **(headers or {})})
        self._stream, self._send_timeout_s = stream, send_timeout_s

    @classmethod
    async def started(
        cls, stream: AsyncGenerator[str, None], send_timeout_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> EventStream:
        """Waits for the first event, so that an early failure still has a status code of its own.

        A client that takes nothing for `send_timeout_s` is left: its connection is closed.
        """
        return cls(_Started(await anext(stream), stream), send_timeout_s, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_late = False

        async def send_in_time(message: Message) -> None:
            nonlocal is_late
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                is_late = True
                raise

        try:
            await super().__call__(scope, receive, send_in_time)
        except (TimeoutError, ClientDisconnect):
            if not is_late:
                raise
            log.warning("A client took nothing for %g s: its connection is closed", self._send_timeout_s)
        finally:
            await self._stream.aclose()


class ClientLeft(Exception):
    """Nobody waits for the reply any more."""


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """The work's result; a client that hangs up cancels it, as no framework does for a plain reply."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_S)
            if not task.done() and await request.is_disconnected():
                raise ClientLeft
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
