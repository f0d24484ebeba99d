"""Errors on the wire: one exception, one JSON shape, the status codes that OpenAI clients map to their own classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from types import MappingProxyType

from adapters.errors import AdapterError
from engine.errors import BadGrammar, CannotRun, EngineDied, EngineError, NotFinite, NotNarrower, PromptTooLong, TimedOut


# Not frozen: whoever passes an exception on writes its traceback into it.
@dataclass(eq=False)
class ApiError(Exception):
    """What an endpoint answers instead of a completion."""

    status: int
    message: str
    code: str
    param: str | None = None
    type: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": without_paths(self.message), "type": self.type, "param": self.param, "code": self.code}}


_PATH = re.compile(r"(?:file://)?(/[^\s'\",;:()\[\]]+)")


def without_paths(text: str) -> str:
    """Paths of this machine are cut to their last part: where files lie is no client's business."""

    def shortened(found: re.Match[str]) -> str:
        path = PurePosixPath(found[1].rstrip("."))
        return path.name if len(path.parts) > 2 and path.parts[1] in _top_folders() else found[0]

    return _PATH.sub(shortened, text)


@cache
def _top_folders() -> frozenset[str]:
    """Read once: a text that a client wrote never makes this machine's disk be asked."""
    return frozenset(os.listdir("/"))


# The client would try a deterministic failure twice more: say that it need not.
_FINAL = {"x-should-retry": "false"}
NOTHING: Mapping[str, str] = MappingProxyType({})


def from_engine(error: EngineError | AdapterError, model: str, params: Mapping[str, str] = NOTHING) -> ApiError:
    """The answer to a failure of one row. `params`: the client's fields by the engine's."""
    match error:
        case PromptTooLong():
            return ApiError(400, str(error), "context_length_exceeded", params.get("prompt_ids"))
        case NotNarrower():
            return ApiError(400, str(error), "invalid_value", "decoding")
        case CannotRun():
            return ApiError(400, str(error), "invalid_value", params.get(error.field or ""))
        case TimedOut():
            return ApiError(504, str(error), "timeout", None, "server_error", _FINAL)
        case EngineDied():
            return ApiError(503, str(error), "engine_ended", None, "server_error", {"retry-after": "10"})
        case BadGrammar():
            return ApiError(400, str(error), "invalid_value", params.get("grammar"))
        case NotFinite():
            message = f"The model {model!r} computed values that are not finite, so it cannot answer. Roll it back."
            return ApiError(500, message, "model_not_finite", "model", "server_error", _FINAL)
        case _:
            return ApiError(500, str(error), "engine_error", None, "server_error", _FINAL)


def internal(request_id: str) -> ApiError:
    message = f"The server failed at this request. Its log has the reason under request id {request_id}."
    return ApiError(500, message, "internal_error", None, "server_error")
