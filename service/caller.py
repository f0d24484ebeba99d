"""Who asks: the key that a request came with, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import HTTPConnection

_IN_SCOPE = "graftline.caller"


class Scope(StrEnum):
    """What a key may do. `admin` holds the other three."""

    COMPLETE = "complete"  # completions, and what a client needs for them
    TUNE = "tune"  # files and jobs
    PROMOTE = "promote"  # what a name serves: promotions, rollbacks, canaries
    ADMIN = "admin"  # adapters at run time, and the server itself


@dataclass(frozen=True)
class Caller:
    """`key` is a key's id, never its secret; None on a server without keys, where everybody may do everything."""

    key: str | None
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYONE = Caller(None, "anyone", frozenset(Scope))


def caller_of(connection: HTTPConnection) -> Caller:
    """Whom the guard let in."""
    caller: Caller = connection.scope.get(_IN_SCOPE, ANYONE)
    return caller
