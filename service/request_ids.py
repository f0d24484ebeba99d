"""Request ids: the client's, or made here; on every reply, in every line of the log."""

from __future__ import annotations

import re
import uuid

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ID = "x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class RequestIds:
    """Takes the client's x-request-id, where it is harmless and not too long, or makes one; every reply carries it.

    Plain ASGI: a BaseHTTPMiddleware would hide the client's hanging up from the endpoint.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_ID, "")
        # A part of it would be nobody's id, and could be another request's.
        request_id = given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id(request: Request) -> str:
    return str(request.state.request_id)
