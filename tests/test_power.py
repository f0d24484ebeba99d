"""How many items a claim needs: the published formulas, worked values, and what the exact test really does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.power import (
    items_to_decide,
    items_to_detect,
    items_to_detect_continuous,
    items_to_show_retention,
    smallest_detectable,
    smallest_detectable_change,
)
from evaluation.statistics import paired_change

DETECT = {
    0.05: (3923, 979, 434),
    0.10: (7847, 1960, 870, 312),
    0.15: (11771, 2941, 1306, 469),
    0.20: (15696, 3923, 1742, 626),
    0.30: (23545, 5885, 2614, 940),
}
RETAIN = {0.02: (773, 1546, 3092), 0.03: (344, 687, 1374), 0.05: (124, 248, 495)}


@pytest.mark.parametrize("discordance", DETECT)
def test_items_that_show_a_drop_of_1_2_3_and_5_points(discordance: float) -> None:
    asked = zip((0.01, 0.02, 0.03, 0.05), DETECT[discordance], strict=False)
    for change, items in asked:
        assert items_to_detect(-change, discordance) == pytest.approx(items, abs=1)


@pytest.mark.parametrize("margin", RETAIN)
def test_items_that_show_retention_within_a_margin(margin: float) -> None:
    for discordance, items in zip((0.05, 0.10, 0.20), RETAIN[margin], strict=True):
        assert items_to_show_retention(margin, discordance) == pytest.approx(items, abs=1)


@pytest.mark.parametrize(("families", "items"), [(1, 1960), (5, 2917), (8, 3194)])
def test_several_families_need_more_items_each(families: int, items: int) -> None:
    assert items_to_detect(0.02, 0.1, alpha=0.05 / families) == pytest.approx(items, abs=1)


@pytest.mark.parametrize(
    ("items", "discordance", "power"), [(500, 0.1, 0.23), (1000, 0.1, 0.48), (1962, 0.1, 0.79), (2000, 0.2, 0.48)]
)
def test_the_exact_test_finds_two_points_as_often_as_planned(items: int, discordance: float, power: float) -> None:
    flipped = np.random.default_rng(0).multinomial(
        items, [discordance / 2 + 0.01, discordance / 2 - 0.01, 1 - discordance], size=4000
    )
    lost, moved = flipped[:, 0], flipped[:, :2].sum(1)
    p_values = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(lost, moved - lost), moved, 0.5))
    assert (p_values <= 0.05).mean() == pytest.approx(power, abs=0.025)


def test_the_smallest_detectable_drop_is_the_one_that_needs_these_items() -> None:
    for discordance in (0.05, 0.1, 0.3):
        least = smallest_detectable(1960, discordance)
        assert items_to_detect(least, discordance) == pytest.approx(1960, abs=1)
    assert smallest_detectable(1960, 0.1) == pytest.approx(0.02, abs=1e-4)
    assert math.isnan(smallest_detectable(5, 0.1))


def test_a_pilot_of_two_hundred_sizes_a_continuous_measure() -> None:
    # (1.960 + 0.8416)^2 = 7.849, times (0.1 / 0.02)^2 = 25
    assert items_to_detect_continuous(0.02, 0.1) == 197


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


@pytest.mark.parametrize(("change", "discordance"), [(0.0, 0.1), (0.2, 0.1)])
def test_a_change_beyond_the_discordance_is_refused(change: float, discordance: float) -> None:
    with pytest.raises(ValueError, match="at most the discordance"):
        items_to_detect(change, discordance)


def test_retention_is_not_shown_of_a_loss_of_the_margin() -> None:
    with pytest.raises(ValueError, match="only of a smaller loss"):
        items_to_show_retention(0.02, 0.1, change=-0.02)
    assert items_to_show_retention(0.02, 0.1, change=-0.01) > 3.9 * items_to_show_retention(0.02, 0.1)
