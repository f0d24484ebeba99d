"""The base of request bodies: JSON's true and false are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationInfo, field_validator


class JsonFields(BaseModel):
    """Python reads true as 1; here a field of a number refuses it. 12.0 is an integer."""

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name is not None and _asks_for_a_number(cls, info.field_name):
            raise ValueError(f"it is a number, but got {str(value).lower()}")
        return value


@cache
def _asks_for_a_number(model: type[BaseModel], field: str) -> bool:
    kinds = set(_kinds(model.model_fields[field].annotation))
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: object) -> Iterator[object]:
    """The members of a union, without what is said about them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _kinds(one)
    else:
        yield annotation
