"""Bodies are bounded while they are read: in size, in time, and all together in memory."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import meters
from service.errors import ApiError
from service.parts import Parts
from service.quota import too_many
from service.scopes import rule_for

# Requests that may each hold the largest body at one time; ordinary ones are a thousandth of it.
_LARGEST_AT_ONCE = 16


class _Gone(Exception):
    """The client hung up before its body was there."""


class BoundedBodies:
    """Plain ASGI, behind the guard: whom nobody let in makes nothing be read. Endpoints get their body in one piece."""

    def __init__(self, app: ASGIApp, application: FastAPI | None = None) -> None:
        self._app, self._application = app, application
        self.held = 0  # bytes, of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: Parts | None = getattr((self._application or scope["app"]).state, "parts", None)
        rule = rule_for(scope["method"], scope["path"])
        if parts is None or scope["method"] in ("GET", "HEAD") or (rule is not None and rule.bounds_its_body):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            await self._read(Headers(scope=scope), receive, body, parts.settings.max_body_bytes, parts.settings.body_timeout_s)
            await self._app(scope, _replayed(bytes(body), receive), send)
        except _Refused as refused:
            meters.TURNED_AWAY.labels(refused.error.code).inc()
            answer = JSONResponse(refused.error.body(), refused.error.status, dict(refused.error.headers))
            await answer(scope, receive, send)
        except _Gone:
            pass
        finally:
            self.held -= len(body)

    async def _read(self, headers: Headers, receive: Receive, body: bytearray, most: int, timeout_s: float) -> None:
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(f"is {declared} bytes", most)
        try:
            async with asyncio.timeout(timeout_s):
                is_more = True
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    piece = message.get("body", b"")
                    body += piece
                    self.held += len(piece)
                    is_more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large("is longer", most)
                    if self.held > most * _LARGEST_AT_ONCE:
                        raise _Refused(too_many("Too many large bodies are under way.", "overloaded", "server_overloaded", 1.0))
        except TimeoutError as error:
            told = f"A body must arrive within {timeout_s:g} s, and {len(body)} bytes of this one did. Send it faster."
            raise _Refused(ApiError(408, told, "body_timeout", headers={"connection": "close"})) from error


class _Refused(Exception):
    """Apart from ApiError, which an endpoint may raise too."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def _too_large(what: str, most: int) -> _Refused:
    message = f"A body is at most {most} bytes here, but this one {what}. Send less at once."
    return _Refused(ApiError(413, message, "body_too_large", headers={"x-should-retry": "false", "connection": "close"}))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the server says: that the client hung up."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
