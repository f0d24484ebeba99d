"""Pace: what is done, and how long the rest will take."""

from __future__ import annotations

import io
import math

import pytest

from service.pace import BadSeconds, Budget, Pace


def test_the_time_left_is_by_the_pace_since_counting_began() -> None:
    out, clock = io.StringIO(), iter([0.0, 20.0, 25.0, 40.0])
    pace = Pace(out, lambda: next(clock))
    for done in (40, 50, 55, 100):  # 40 were done by an earlier run
        pace("rows scored", done, 100)
    assert out.getvalue().splitlines() == [
        "rows scored: 40 of 100",
        "rows scored: 50 of 100, about 1:40 left",
        "rows scored: 100 of 100",
    ]


def test_no_budget_is_never_spent_and_an_old_one_is() -> None:
    assert not Budget(None, started=0.0).is_spent()
    assert Budget(5.0, started=float("-inf")).is_spent()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_a_budget_that_no_clock_reaches_or_that_is_over_at_once_is_refused(seconds: float) -> None:
    with pytest.raises(BadSeconds, match="--time-budget-s is a number of seconds above 0, but got"):
        Budget(seconds)
