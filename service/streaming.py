"""Server-sent events: the chunks of a reply, and a response that frees its rows when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import JsonValue
from starlette.types import Receive, Scope, Send

from service.errors import ApiError
from service.openai_shapes import Choice, Reply
from service.reply_parts import ReplyParts
from service.writing import Writing

T = TypeVar("T")
_POLL_S = 0.1
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_DONE = "data: [DONE]\n\n"


async def events(
    writing: Writing, reply: Reply, *, include_usage: bool, parts: Sequence[ReplyParts] = ()
) -> AsyncGenerator[str, None]:
    """The whole stream. What fails before the first token is raised; what fails later is an event.

    `parts`: one a choice of a chat.
    """
    is_chat = reply.object == "chat.completion.chunk"
    is_open = False

    def chunk(*choices: Choice, last: bool = False) -> str:
        # How the reply was made is told where a choice ends.
        told = writing.told() if any(choice.finish_reason for choice in choices) else None
        return _event(reply.wire(choices, writing.usage if last else None, with_usage=include_usage, told=told))

    try:
        async with contextlib.aclosing(writing.deltas()) as deltas:
            async for index, delta in deltas:
                if not is_open and is_chat:
                    yield chunk(Choice(index=index, delta={"role": "assistant", "content": ""}))
                is_open = True
                reason: str | None = delta.finish_reason
                if is_chat:
                    for piece in parts[index].wire(parts[index].add(delta)):
                        yield chunk(Choice(index=index, delta=piece))
                    reason = None if reason is None else parts[index].finish_reason(reason)
                elif delta.text:
                    yield chunk(Choice(index=index, text=delta.text))
                if reason is not None:
                    end = Choice(index=index, delta={}) if is_chat else Choice(index=index, text="")
                    yield chunk(end.model_copy(update={"finish_reason": reason}))
    except ApiError as error:
        if not is_open:
            raise
        yield _event({**error.body()})
        return
    if include_usage:
        yield chunk(last=True)
    yield _DONE


def _event(body: dict[str, JsonValue] | dict[str, dict[str, str | None]]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


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

    def __init__(self, stream: _Started) -> None:
        super().__init__(stream, media_type="text/event-stream", headers=_HEADERS)
        self._stream = stream

    @classmethod
    async def started(cls, stream: AsyncGenerator[str, None]) -> EventStream:
        """Waits for the first event, so that an early failure still has a status code of its own."""
        return cls(_Started(await anext(stream), stream))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
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
