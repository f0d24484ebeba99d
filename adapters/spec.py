"""Specs: frozen values of one part, with each field's search range beside its default."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Range:
    """The closed interval that a sweep may draw a number from; `log` draws it on the log scale."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"A range needs low <= high, and low > 0 on the log scale, but got {self}.")


@dataclass(frozen=True)
class Choices:
    """The values that a sweep may draw from."""

    options: tuple[str | int | float | bool, ...]


class Spec(BaseModel):
    """Frozen values; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def search_space(cls) -> dict[str, Range | Choices]:
        """The fields that a sweep may vary, by name, with their ranges."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, (Range, Choices))
        }
