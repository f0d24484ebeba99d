"""Around the endpoints: request ids, and every failure in the OpenAI shape."""

from __future__ import annotations

import logging
import re
import uuid

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import meters
from service.errors import ApiError, internal
from service.streaming import ClientLeft
from service.unsupported import UnsupportedField

log = logging.getLogger("graftline.requests")
_ID = "x-request-id"
_PLACES = ("body", "query", "path", "header")  # where FastAPI found a field: no part of its name
_UNSAFE = re.compile(r"[^A-Za-z0-9_.:-]")


class RequestIds:
    """Takes the client's x-request-id, made harmless, or makes one; every reply carries it.

    Plain ASGI: a BaseHTTPMiddleware would hide the client's hanging up from the endpoint.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _UNSAFE.sub("", Headers(scope=scope).get(_ID, ""))[:128]
        request_id = given or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id(request: Request) -> str:
    return str(request.state.request_id)


def answer_errors(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _nobody_there)
    app.add_exception_handler(Exception, _unforeseen)


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, dict(error.headers))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing wrong with the body, as one sentence that names the field."""
    assert isinstance(error, RequestValidationError)
    meters.count_refusal()
    return _answer(invalid_request(error))


def invalid_request(error: RequestValidationError) -> ApiError:
    found = list(error.errors())
    first = found[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnsupportedField):
        return ApiError(400, str(cause), "unsupported_parameter", cause.param)
    if first["type"] == "json_invalid":
        return ApiError(400, "The body must be a JSON object, but it is not JSON. Check its quotes and commas.", "invalid_json")
    path = [str(part) for place, part in enumerate(first["loc"]) if place or part not in _PLACES]
    if not path and first["type"] == "value_error":
        return ApiError(400, f"{first['msg'].removeprefix('Value error, ').rstrip('.')}.", "invalid_value")
    if not path:
        return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json.", "invalid_request")
    message = f"{'.'.join(path)} does not fit: {first['msg'].removeprefix('Value error, ')}."
    return ApiError(400, message, "missing_parameter" if first["type"] == "missing" else "invalid_value", path[0])


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return _answer(ApiError(400, f"The body cannot be read: {error.detail}.", "invalid_body"))
    message = f"{request.method} {request.url.path} is not offered here ({error.detail})."
    return _answer(ApiError(error.status_code, message, "unknown_url"))


async def _nobody_there(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("Request %s failed", request_id(request), exc_info=error)
    return _answer(internal(request_id(request)))
