"""Who asks: the key that a request came with, what it may do and how much."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.types import Scope as ConnectionScope

_IN_SCOPE = "graftline.caller"


class Scope(StrEnum):
    """What a key may do. `admin` holds the other three."""

    COMPLETE = "complete"  # completions, and what a client needs for them
    TUNE = "tune"  # files and jobs
    PROMOTE = "promote"  # what a name serves: promotions, rollbacks, canaries
    ADMIN = "admin"  # adapters at run time, and the server itself


class Quota(BaseModel):
    """How much a key may ask for; None is no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_min: int | None = Field(default=None, ge=1)
    tokens_per_min: int | None = Field(default=None, ge=1)
    """Of prompts and completions together."""
    max_running: int | None = Field(default=None, ge=1)
    """Requests that wait or run at one time."""


@dataclass(frozen=True)
class Caller:
    """`key` is a key's id, never its secret; None on a server without keys, where everybody may do everything."""

    key: str | None
    name: str
    scopes: frozenset[Scope]
    quota: Quota = Quota()

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYONE = Caller(None, "anyone", frozenset(Scope))


def let_in(scope: ConnectionScope, caller: Caller) -> None:
    """For the guard alone."""
    scope[_IN_SCOPE] = caller


def caller_of(connection: HTTPConnection) -> Caller:
    """Whom the guard let in."""
    caller: Caller = connection.scope.get(_IN_SCOPE, ANYONE)
    return caller
