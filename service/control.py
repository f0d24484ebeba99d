"""Who may change a running server: the holder of a key of the right scope, or everybody where the operator opened it."""

from __future__ import annotations

from fastapi import Depends, Request

from service.caller import caller_of
from service.errors import ApiError
from service.parts import PartsHere


def _opened(parts: PartsHere, request: Request) -> None:
    """Keys and their scopes were looked at before anything was routed; this is for a server that has none."""
    if caller_of(request).key is None and not parts.settings.open_control:
        message = "A server without keys is not changed over HTTP. Make a key, or set GRAFTLINE_OPEN_CONTROL=true."
        raise ApiError(403, message, "not_allowed", None, "permission_error")


CONTROLLED = Depends(_opened)
