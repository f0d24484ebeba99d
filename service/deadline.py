"""Deadlines: how long a request may take from its arrival, waiting included."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.errors import ApiError

HEADER = "x-request-timeout"
_ARRIVED = "graftline.arrived"


@dataclass(frozen=True)
class Allowed:
    """`spent_s` of `timeout_s` are over. `is_clients`: the client asked for less than the server allows."""

    timeout_s: float
    spent_s: float = 0.0
    is_clients: bool = False

    @property
    def left_s(self) -> float:
        return self.timeout_s - self.spent_s


def note_arrival(scope: Scope) -> None:
    scope[_ARRIVED] = time.monotonic()


def allowed(connection: HTTPConnection, asked_s: float | None, most_s: float) -> Allowed:
    """The least of what the field `timeout`, the header and the server allow; ApiError 400 for a header that is no time."""
    given = connection.headers.get(HEADER)
    try:
        header_s = math.inf if given is None else float(given)
    except ValueError:
        header_s = math.nan
    if not header_s > 0:
        message = f"The header {HEADER} is a number of seconds above 0, but got {given!r:.80}. Correct it or leave it out."
        raise ApiError(400, message, "invalid_value", HEADER)
    spent_s = time.monotonic() - connection.scope.get(_ARRIVED, time.monotonic())
    wished_s = min(header_s, math.inf if asked_s is None else asked_s)
    return Allowed(min(most_s, wished_s), spent_s, wished_s < most_s)
