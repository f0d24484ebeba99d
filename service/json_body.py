"""Bodies of JSON, read strictly: UTF-8, no NaN or infinity, nothing behind the end, nested no deeper than 200."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import JsonValue
from pydantic_core import from_json
from starlette.types import Receive, Scope

from service.errors import ApiError

_LARGE_EXPONENT = re.compile(rb"[eE]\+?\d{3}")


def strict_json(raw: bytes) -> JsonValue:
    """ApiError 400 with the place where it ceases to be JSON."""
    try:
        value: JsonValue = from_json(raw, allow_inf_nan=False)
        if _LARGE_EXPONENT.search(raw):
            json.dumps(value, allow_nan=False)  # a number too large for a float was read as infinity
    except ValueError as error:
        rule = "The body must be a JSON object in UTF-8, without NaN or infinity"
        raise ApiError(400, f"{rule}, but it is not: {error}. Check its quotes and commas.", "invalid_json") from error
    return value


class _Parsed(Request):
    """A request whose JSON was read already."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self._value: JsonValue = None

    async def read(self) -> _Parsed:
        raw = await self.body()
        if raw:
            self._value = strict_json(raw)
        return self

    async def json(self) -> JsonValue:
        return self._value


class JsonRoute(APIRoute):
    """For `APIRouter(route_class=JsonRoute)`: Python's own reader takes NaN, and recurses as deep as it is asked to."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if "json" not in request.headers.get("content-type", "json"):
                return await handle(request)
            return await handle(await _Parsed(request.scope, request.receive).read())

        return strict
