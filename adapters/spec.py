"""Specs: frozen values of one part, with each field's search range beside its default."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_NUMBERS = frozenset({int, float})


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

    @field_validator("*", mode="before")
    @classmethod
    def _true_and_texts_are_no_numbers(cls, value: object, info: ValidationInfo) -> object:
        """TOML and JSON can say which is meant: pydantic would read true as 1, "8" as 8 and 1 as true."""
        assert info.field_name is not None
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool | str) and kinds & _NUMBERS and type(value) not in kinds:
            raise ValueError("Input should be a number")
        if bool in kinds and not isinstance(value, bool) and isinstance(value, int | float | str) and not kinds & {type(value)}:
            raise ValueError("Input should be true or false")
        return value

    @classmethod
    def search_space(cls) -> dict[str, Range | Choices]:
        """The fields that a sweep may vary, by name, with their ranges."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, (Range, Choices))
        }


def _kinds(annotation: object) -> frozenset[object]:
    """The types that a field takes, of a union each; what containers hold is not among them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return frozenset(type(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return frozenset[object]().union(*map(_kinds, get_args(annotation)))
    return frozenset({annotation})
