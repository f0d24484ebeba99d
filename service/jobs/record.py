"""A job and what it told: values, as they are stored and as nobody changes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Kind = Literal["fine_tuning", "promotion"]
State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
PREFIX: dict[Kind, str] = {"fine_tuning": "ftjob", "promotion": "promotion"}


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Value):
    """Ids sort in the order in which jobs were made, also within one second. Times are seconds since 1970."""

    id: str
    kind: Kind
    state: State = "queued"
    created_at: int
    actor: str
    request: dict[str, JsonValue]  # as it was asked, with what was left open filled in
    started_at: int | None = None
    finished_at: int | None = None
    process_id: int | None = None  # also of its group
    result: dict[str, JsonValue] | None = None
    error: str | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class JobEvent(_Value):
    """One line of what a job tells."""

    at: float
    message: str
    data: dict[str, JsonValue] | None = None  # numbers, where it tells some


class Outcome(_Value):
    """What a job's process leaves when it ends by itself: a result, or the sentence of what went wrong."""

    result: dict[str, JsonValue] | None = None
    error: str | None = None
