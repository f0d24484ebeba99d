"""Who may change a running server: whoever has a key of the right scope, and nobody on an open one that has no keys."""

from __future__ import annotations

from fastapi import Depends, Request

from service.caller import caller_of
from service.errors import ApiError
from service.parts import PartsHere


def _opened(parts: PartsHere, request: Request) -> None:
    """Keys and their scopes, or that the caller is on this machine, was looked at before anything was routed."""
    settings = parts.settings
    if caller_of(request).key is None and settings.open and not settings.open_control:
        message = "A server that is open to everybody is not changed over HTTP. Make a key, or set GRAFTLINE_OPEN_CONTROL=true."
        raise ApiError(403, message, "not_allowed", None, "permission_error")


CONTROLLED = Depends(_opened)
