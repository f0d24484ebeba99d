"""Around the endpoints: every failure in the OpenAI shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service import meters
from service.errors import ApiError, internal
from service.request_ids import request_id
from service.streaming import ClientLeft
from service.unsupported import UnsupportedField

log = logging.getLogger("graftline.requests")
_PLACES = ("body", "query", "path", "header")  # where FastAPI found a field: no part of its name


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
    message = f"{'.'.join(path)} does not fit: {_in_words_of_json(first).rstrip('.')}."
    return ApiError(400, message, "missing_parameter" if first["type"] == "missing" else "invalid_value", path[0])


def _in_words_of_json(error: Mapping[str, object]) -> str:
    """JSON has lists and no tuples."""
    told = str(error["msg"]).removeprefix("Value error, ")
    return told if error["type"] == "value_error" else re.sub(r"\btuple\b", "list", told.replace("Tuple", "List"))


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
