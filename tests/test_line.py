"""The waiting line: order, scanning past what does not fit, and that nobody waits for ever."""

from __future__ import annotations

import torch

from adapters.adapter import Prompt
from engine.line import MAX_PASSED, WaitingLine
from engine.row import Row
from engine.sampling import Sampler
from engine.text import TextStream


def row(name: str, priority: int = 0) -> Row:
    sampler = Sampler(0.0, 1.0, torch.Generator())
    return Row(name, Prompt((1, 2)), 2, 4, frozenset(), sampler, TextStream(lambda ids: ""), priority=priority)


def line_of(*rows: Row) -> WaitingLine:
    line = WaitingLine()
    for one in rows:
        line.add(one)
    return line


def names(rows: list[Row]) -> list[str]:
    return [one.name for one in rows]


def test_the_smaller_priority_joins_first_and_of_equal_ones_who_came_first() -> None:
    line = line_of(row("late", 5), row("a"), row("b"), row("now", -1))
    assert names(line.take(3, lambda one: True)) == ["now", "a", "b"]
    assert names(list(line)) == ["late"]


def test_a_row_that_does_not_fit_yet_is_passed_by_those_behind_it() -> None:
    line = line_of(row("large"), row("small"), row("also small"))
    assert names(line.take(9, lambda one: one.name != "large")) == ["small", "also small"]
    assert names(line.take(9, lambda one: True)) == ["large"]


def test_a_row_that_was_passed_often_enough_lets_nobody_by_until_it_fits() -> None:
    line = line_of(row("large"))
    for place in range(MAX_PASSED):
        line.add(row(f"small {place}"))
        assert len(line.take(9, lambda one: one.name != "large")) == 1
    line.add(row("one more"))
    assert line.take(9, lambda one: one.name != "large") == []
    assert names(line.take(9, lambda one: True)) == ["large", "one more"]


def test_a_row_of_low_priority_is_first_once_it_was_passed_often_enough() -> None:
    line = line_of(row("low", 9))
    for place in range(MAX_PASSED + 1):
        line.add(row(f"high {place}"))
        (taken,) = line.take(1, lambda one: True)
        assert taken.name == ("low" if place == MAX_PASSED else f"high {place}")


def test_a_policy_of_ones_own_decides_the_order() -> None:
    line = WaitingLine(lambda waiting: reversed(waiting))
    for name in "abc":
        line.add(row(name))
    assert names(line.take(2, lambda one: True)) == ["c", "b"]


def test_who_leaves_the_line_is_told() -> None:
    line = line_of(row("a"), row("b"))
    assert names(line.leave(lambda one: one.name == "a")) == ["a"]
    assert names(list(line)) == ["b"]
