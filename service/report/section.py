"""A section of the page: how to read it, what it cannot show, its pictures, its tables, or what would measure it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """`text` is what is read, `value` what is stored; without a value there is a dash."""

    value: float | None
    text: str


@dataclass(frozen=True)
class Run:
    """A run that numbers come from."""

    id: str | None


Cell = str | Number | Run


@dataclass(frozen=True)
class Table:
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric(self) -> frozenset[int]:
        """The columns that hold numbers, which stand on the right."""
        return frozenset(place for row in self.rows for place, cell in enumerate(row) if isinstance(cell, Number))


@dataclass(frozen=True)
class Picture:
    """`svg` is markup of our own making; `alt` says in words what it shows."""

    svg: str
    alt: str


@dataclass(frozen=True)
class Missing:
    """Why there is nothing, and the command that measures it."""

    reason: str
    command: str = ""


@dataclass(frozen=True)
class Steps:
    """A trace: who wrote it, what it answered, and one row a step with what it adds."""

    title: str
    table: Table


@dataclass(frozen=True)
class Example:
    """What is open at once, or folded; `question` and `gold` are quoted."""

    title: str
    question: str
    gold: str
    picture: Picture
    traces: tuple[Steps, ...]
    is_open: bool


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    reading: str  # how to read it
    limits: str  # what it cannot show
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    missing: tuple[Missing, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or self.tables or self.examples)


def number(value: float | None, digits: int = 3) -> Number:
    """A score as it is."""
    return _number(value, f".{digits}f")


def change(value: float | None, digits: int = 3) -> Number:
    """With its sign, and a true minus."""
    return _number(value, f"+.{digits}f")


def count(value: float | None) -> Number:
    return _number(value, ",.0f")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    if not (_known(low) and _known(high)):
        return "-"
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")


def runs_of(ids: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in ids if one))


def _number(value: float | None, form: str) -> Number:
    if not _known(value):
        return Number(None, "-")
    assert value is not None
    return Number(float(value), f"{value:{form}}".replace("-", "−"))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
