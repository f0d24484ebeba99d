"""Intervals: exact where nothing changed, and as wide as the clusters say."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.retention import capped_retention, violations
from evaluation.statistics import change_over_seeds, flips, paired_change, score, wilson


def test_no_difference_is_exactly_zero() -> None:
    change = paired_change([0.3, 0.7, 1.0], [0.3, 0.7, 1.0], ["a", "b", "c"])
    assert (change.mean, change.low, change.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        shift = rng.normal(0, 0.5, 30).repeat(5)  # one shift a cluster: items in it are not independent
        values = 0.2 + shift + rng.normal(0, 1, 150)
        change = paired_change(np.zeros(150), values, np.arange(30).repeat(5).astype(str).tolist(), seed=seed, draws=500)
        covered += change.low <= 0.2 <= change.high
    assert 0.89 <= covered / 200 <= 0.99


def test_dependent_items_widen_the_interval() -> None:
    values = np.random.default_rng(1).normal(0, 1, 20).repeat(10)
    together = paired_change(np.zeros(200), values, np.arange(20).repeat(10).astype(str).tolist())
    alone = paired_change(np.zeros(200), values, np.arange(200).astype(str).tolist())
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_standard_error_counts_clusters_not_items() -> None:
    values = np.random.default_rng(1).normal(0, 1, 20).repeat(10)
    together = paired_change(np.zeros(200), values, np.arange(20).repeat(10).astype(str).tolist())
    alone = paired_change(np.zeros(200), values, np.arange(200).astype(str).tolist())
    assert together.stderr == pytest.approx(score(values[::10].tolist()).stderr)
    assert alone.stderr == pytest.approx(score(values.tolist()).stderr)
    assert together.stderr > 3 * alone.stderr
    assert together.high - together.low == pytest.approx(2 * 1.96 * together.stderr, rel=0.15)


def test_one_cluster_has_the_standard_error_of_its_items() -> None:
    found = paired_change([0.0] * 4, [0.0, 1.0, 1.0, 0.0], ["a"] * 4)
    assert found.stderr == pytest.approx(score([0.0, 1.0, 1.0, 0.0]).stderr)
    assert paired_change([1.0] * 4, [1.0] * 4, list("abcd")).stderr == 0.0


def test_a_few_fixed_templates_are_kept_in_their_shares() -> None:
    # Two templates that differ for sure, and no spread inside them: nothing is uncertain.
    change = paired_change([0.0] * 8, [1.0] * 4 + [0.0] * 4, ["a"] * 4 + ["b"] * 4)
    assert (change.low, change.high) == (0.5, 0.5)


def test_a_few_clusters_of_one_item_each_are_not_certain() -> None:
    change = paired_change([1.0] * 8, [0.0] + [1.0] * 7, list("abcdefgh"))
    assert change.low < change.mean < change.high and change.method == "stratified percentile"
    assert change.high - change.low == pytest.approx(2 * 1.96 * change.stderr, rel=0.25)


def test_a_lone_item_beside_a_full_template_counts_with_it() -> None:
    change = paired_change([0.0] * 5, [1.0, 1.0, 0.0, 1.0, 0.0], ["a"] * 4 + ["b"])
    assert change.low < change.mean < change.high


def test_a_single_item_that_changed_bounds_nothing() -> None:
    change = paired_change([1.0], [0.0], ["a"])
    assert (change.low, change.high, change.method) == (-np.inf, np.inf, "none")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_items_a_template_cover_as_often_as_many(size: int) -> None:
    rng, covered, count = np.random.default_rng(3), 0, 9 * size
    names = np.arange(9).repeat(size).astype(str).tolist()
    for seed in range(200):
        change = paired_change(np.zeros(count), 0.2 + rng.normal(0, 1, count), names, seed=seed, draws=500)
        covered += change.low <= 0.2 <= change.high
    assert covered / 200 >= 0.88


def test_a_skewed_change_has_an_interval_that_leans_with_it() -> None:
    values = np.random.default_rng(5).exponential(1, 40) ** 2
    change = paired_change(np.zeros(40), values, [str(i) for i in range(40)])
    assert change.method == "BCa"
    assert change.high - change.mean > 1.2 * (change.mean - change.low)


def test_where_bca_is_undefined_the_percentiles_stand_in() -> None:
    change = paired_change([0.0] * 20, [1.0] * 20, [str(i) for i in range(20)])
    assert (change.low, change.high, change.method) == (1.0, 1.0, "percentile")


@pytest.mark.parametrize("num_sets", [2, 5, 9, 15])
def test_few_drawn_sets_cover_as_often_as_they_say_and_as_templates_they_would_not(num_sets: int) -> None:
    rng = np.random.default_rng(num_sets)
    sets = [str(index // 8) for index in range(8 * num_sets)]
    covered = {True: 0, False: 0}
    for _ in range(200):
        change = np.repeat(rng.standard_normal(num_sets), 8) + 0.8 * rng.standard_normal(8 * num_sets)
        for drawn in covered:
            found = paired_change(np.zeros(len(change)).tolist(), change.tolist(), sets, draws=200, drawn_clusters=drawn)
            covered[drawn] += found.low <= 0 <= found.high
    assert covered[True] >= 180
    assert covered[False] < (100 if num_sets < 10 else covered[True] + 1)


def test_a_single_drawn_set_that_changed_bounds_nothing() -> None:
    found = paired_change([0.0] * 8, [1.0] * 8, ["one"] * 8, drawn_clusters=True)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert paired_change([0.0] * 8, [0.0] * 8, ["one"] * 8, drawn_clusters=True).method == "exact"


def test_one_seed_that_collapsed_widens_the_interval_over_seeds() -> None:
    rng = np.random.default_rng(6)
    names = [str(i) for i in range(60)]

    def read(shift: float) -> list[float]:
        return (shift + rng.normal(0, 0.2, 60)).tolist()

    alike = change_over_seeds([0.0] * 60, {"1": read(0), "2": read(0), "3": read(0)}, names)
    collapsed = change_over_seeds([0.0] * 60, {"1": read(0), "2": read(0), "3": read(-1.5)}, names)
    assert collapsed.high - collapsed.low > 5 * (alike.high - alike.low)
    assert collapsed.low < -1.4 and collapsed.mean == pytest.approx(-0.5, abs=0.05)


def test_more_seeds_on_the_same_items_do_not_average_the_luck_of_the_items_away() -> None:
    values = np.random.default_rng(7).normal(0, 1, 80).tolist()
    names = [str(i) for i in range(80)]
    single = paired_change([0.0] * 80, values, names)
    over = change_over_seeds([0.0] * 80, {str(seed): values for seed in range(5)}, names)
    assert over.mean == pytest.approx(single.mean)
    assert over.high - over.low == pytest.approx(single.high - single.low, rel=0.1)
    assert over.stderr == pytest.approx(single.stderr, rel=0.1)


def test_seeds_alone_show_all_their_variance() -> None:
    # All items alike under a seed: what is left is the standard error of three seeds, which is 1 / sqrt(3).
    over = change_over_seeds([0.0] * 30, {str(s): [float(s)] * 30 for s in (-1, 0, 1)}, [str(i) for i in range(30)])
    assert over.stderr == pytest.approx(1 / np.sqrt(3), rel=0.05)


def test_no_difference_under_any_seed_is_exactly_zero() -> None:
    over = change_over_seeds([0.5, 1.0], {"1": [0.5, 1.0], "2": [0.5, 1.0]}, ["a", "b"])
    assert (over.mean, over.low, over.high) == (0.0, 0.0, 0.0)


def test_one_seed_is_no_change_over_seeds() -> None:
    with pytest.raises(ValueError, match="two seeds or more, but got 1"):
        change_over_seeds([0.0], {"1": [1.0]}, ["a"])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        paired_change([0.0], [0.0, 1.0], ["a"])


def test_flips_are_counted_in_both_directions() -> None:
    found = flips([1, 1, 1, 0], [0, 0, 1, 1])
    assert (found.negative, found.positive) == (0.5, 0.25)
    assert found.p_value == 1.0
    assert flips([1] * 12, [0] * 12).p_value < 0.001


def test_score_and_wilson() -> None:
    assert score([0.0, 1.0, 1.0, 0.0]).mean == 0.5
    low, high = wilson(10, 10)
    assert 0.7 < low < 0.73 and high == 1.0


def test_gains_buy_nothing_and_every_loss_counts() -> None:
    margins = {"a": 0.1, "b": 0.1}
    assert capped_retention({"a": 5.0, "b": -0.2}, margins) == pytest.approx(-1.0)
    assert capped_retention({"a": 5.0, "b": 0.0}, margins) == 0.0
    assert violations({"a": -0.1}, {"a": 0.1}) == {"a": pytest.approx(0.0)}
    with pytest.raises(ValueError, match="Protect at least one"):
        capped_retention({}, {})
