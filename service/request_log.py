"""The log: one line a request, with what answered, what it cost and how it ended; the same facts as a span where spans are on."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import spans

Format = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]
Facts = Mapping[str, str | int | float | None]

log = logging.getLogger("graftline.requests")
# What machines ask every few seconds, and what says nothing about a request.
_SILENT = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
_TOLD = "told"


def configure(form: Format, level: Level) -> None:
    """Where the lines of `graftline.*` go: the standard error stream. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    ours = logging.getLogger("graftline")
    ours.handlers = [handler]
    ours.setLevel(level.upper())
    ours.propagate = False


def tell(request: Request, facts: Callable[[], Facts]) -> None:
    """Adds to the line of this request what is known when it has ended. A text that a client wrote does not belong in it."""
    request.scope.setdefault("state", {}).setdefault(_TOLD, []).append(facts)


class RequestLog:
    """Plain ASGI, inside `RequestIds`. The line stands when the reply has ended, however it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _SILENT:
            await self._app(scope, receive, send)
            return
        began, started, status = time.time_ns(), time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            state = scope.get("state", {})
            facts: dict[str, str | int | float | None] = {
                "request_id": state.get("request_id"),
                "method": scope["method"],
                # The route and not the path: a path may hold what a client typed.
                "route": getattr(scope.get("route"), "path", None),
                "status": status or None,  # None: nobody was there to answer
                "seconds": round(time.perf_counter() - started, 6),
            }
            for told in state.get(_TOLD, []):
                facts.update(told())
            trace_id = spans.record(began, Headers(scope=scope), facts)
            log.info("request", extra={"facts": {**facts, **({} if trace_id is None else {"trace_id": trace_id})}})


class _Json(JsonFormatter):
    def __init__(self) -> None:
        renamed = {"levelname": "level", "name": "logger"}
        super().__init__("%(levelname)s %(name)s %(message)s", timestamp="time", rename_fields=renamed)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data.update(log_data.pop("facts", {}))


class _Text(logging.Formatter):
    """The same facts as KEY=VALUE after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        facts: Facts = getattr(record, "facts", {})
        told = " ".join(f"{key}={value}" for key, value in facts.items() if value is not None)
        return f"{super().format(record)} {told}".rstrip()
