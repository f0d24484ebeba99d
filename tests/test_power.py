"""How many items a claim needs, and which change those at hand would show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.power import items_to_decide, smallest_detectable_change
from evaluation.statistics import paired_change


def test_what_may_have_been_overlooked_counts_clusters() -> None:
    values = np.random.default_rng(1).normal(0, 1, 20).repeat(10)
    together = paired_change(np.zeros(200), values, np.arange(20).repeat(10).astype(str).tolist())
    alone = paired_change(np.zeros(200), values, np.arange(200).astype(str).tolist())
    assert smallest_detectable_change(alone) == pytest.approx(2.802 * alone.stderr, rel=1e-3)
    assert smallest_detectable_change(together) > 3 * smallest_detectable_change(alone)


def test_items_that_did_not_change_at_all_do_not_say_that_nothing_was_overlooked() -> None:
    same = paired_change([1.0] * 8, [1.0] * 8, list("abcdefgh"))
    assert math.isnan(smallest_detectable_change(same))


def test_more_items_are_asked_for_the_nearer_the_change_is_to_the_margin() -> None:
    values = np.random.default_rng(2).normal(0, 1, 100)
    values -= values.mean()
    change = paired_change(np.zeros(100), values, [str(i) for i in range(100)])
    # 6.1826 times the variance over the squared margin
    assert items_to_decide(change, 0.1) == pytest.approx(6.1826 * values.var(ddof=1) / 0.01, abs=2)
    assert (items_to_decide(change, 0.05) or 0) > 3.9 * (items_to_decide(change, 0.1) or 0)
    assert items_to_decide(change, 10.0) == 100


def test_a_change_of_exactly_the_margin_is_never_decided() -> None:
    change = paired_change([0.0] * 20, [-1.0, 0.0] * 10, [str(i) for i in range(20)])
    assert items_to_decide(change, 0.5) is None


@pytest.mark.parametrize("adapted", [0.0, 1.0])
def test_items_that_show_no_spread_do_not_say_how_many_would_decide(adapted: float) -> None:
    change = paired_change([1.0] * 3, [adapted] * 3, list("abc"))
    assert items_to_decide(change, 0.1) is None and math.isnan(smallest_detectable_change(change))
