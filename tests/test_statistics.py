"""Intervals: exact where nothing changed, and as wide as the clusters say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.retention import capped_retention, violations
from evaluation.statistics import change_over_seeds, flips, paired_change, ratio, score, wilson


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


@pytest.mark.parametrize(
    ("templates", "drawn", "spread", "method"),
    [
        (1, False, 0.0, "BCa"),
        (4, False, 1.0, "stratified percentile"),
        (40, False, 1.0, "BCa"),
        (12, True, 1.0, "t over clusters"),
        (40, True, 1.0, "BCa"),
    ],
)
def test_the_standard_error_is_of_what_the_interval_is_made_from(templates: int, drawn: bool, spread: float, method: str) -> None:
    # Templates that differ by much: between clusters, the error is many times that of items within templates.
    rng, index = np.random.default_rng(4), np.arange(240) % templates
    values = spread * rng.normal(0, 1, templates)[index] + rng.normal(0, 0.2, 240)
    found = paired_change(np.zeros(240), values, index.astype(str).tolist(), drawn_clusters=drawn)
    reach = stats.t.ppf(0.975, templates - 1) if method.startswith("t") else 1.96
    assert found.method == method and found.high - found.low == pytest.approx(2 * reach * found.stderr, rel=0.1)


@pytest.mark.parametrize("names", [["a"] * 12, [str(item) for item in range(12)]])
def test_items_that_all_changed_alike_have_no_standard_error(names: list[str]) -> None:
    lost = paired_change([1.0] * 12, [0.0] * 12, names)
    seeds = change_over_seeds([1.0] * 12, {"1": [0.0] * 12, "2": [0.0] * 12}, names)
    assert np.isnan([lost.stderr, seeds.stderr]).all()
    assert paired_change([1.0] * 12, [1.0] * 12, names).stderr == 0.0


def test_a_few_fixed_templates_are_kept_in_their_shares() -> None:
    # Two templates that differ for sure: which of them an item is of is not uncertain.
    values = np.repeat([1.0, 0.0], 30) + np.random.default_rng(9).normal(0, 0.1, 60)
    within = paired_change([0.0] * 60, values.tolist(), ["a"] * 30 + ["b"] * 30)
    across = paired_change([0.0] * 60, values.tolist(), ["a"] * 60)
    assert within.high - within.low < 0.3 * (across.high - across.low)


def test_two_items_lost_of_one_template_are_not_clear_of_zero() -> None:
    base, adapted = [1.0] * 8, [0.0] * 2 + [1.0] * 6
    change = paired_change(base, adapted, list("aabbccdd"))
    assert change.low < change.mean == -0.25 < 0 <= change.high and flips(base, adapted).p_value == 0.5


@pytest.mark.parametrize("templates", [1, 4, 8, 24])
@pytest.mark.parametrize("moved", range(1, 9))
def test_what_all_moved_one_way_is_clear_of_zero_just_where_exact_mcnemar_is(templates: int, moved: int) -> None:
    base, adapted = [1.0] * 24, [0.0] * moved + [1.0] * (24 - moved)
    change = paired_change(base, adapted, [str(item * templates // 24) for item in range(24)])
    assert (change.high < 0) == (flips(base, adapted).p_value <= 0.05), str(change)


@pytest.mark.parametrize("moved", range(2, 9))
def test_items_that_were_all_lost_are_clear_of_zero_just_where_exact_mcnemar_is(moved: int) -> None:
    lost = [1.0] * moved, [0.0] * moved
    for names in (["a"] * moved, [str(item) for item in range(moved)]):
        change = paired_change(*lost, names)
        assert change.method == "all alike" and change.low == -1.0 < change.high
        assert (change.high < 0) == (flips(*lost).p_value <= 0.05), str(change)
    same = change_over_seeds(lost[0], {"1": lost[1], "2": lost[1]}, ["a"] * moved)
    assert (same.high < 0) == (flips(*lost).p_value <= 0.05), str(same)


@pytest.mark.parametrize(("count", "templates"), [(8, 4), (16, 8), (24, 9)])
def test_right_or_wrong_items_of_few_templates_cover_as_often_as_they_say(count: int, templates: int) -> None:
    # Every other template is lost nearly always, so that most hold items that agree.
    rng, covered = np.random.default_rng(count), 0
    names = [item * templates // count for item in range(count)]
    lost = np.where(np.array(names) % 2, 0.02, 0.7)
    for seed in range(300):
        change = paired_change(
            np.zeros(count), -(rng.random(count) < lost).astype(float), [*map(str, names)], seed=seed, draws=400
        )
        covered += change.low <= -lost.mean() <= change.high
    assert covered / 300 >= 0.92


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


def test_clusters_that_all_changed_alike_say_what_others_may_do() -> None:
    change = paired_change([0.0] * 20, [0.5, 1.5] * 10, [str(i // 2) for i in range(20)])
    assert change.method == "all alike" and change.high == 1.0
    least = 0.025 ** (1 / 10)  # Clopper and Pearson for 10 of 10
    assert change.low == pytest.approx(2 * least - 1) and stats.binomtest(10, 10).proportion_ci().low == pytest.approx(least)


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


@pytest.mark.parametrize(("num_sets", "clear"), [(4, False), (5, False), (6, True)])
def test_few_drawn_sets_that_nearly_agree_are_clear_of_zero_only_where_signs_would_be(num_sets: int, clear: bool) -> None:
    change = [1 + 0.05 * number for number in range(num_sets)]
    found = paired_change([0.0] * num_sets, change, list(map(str, range(num_sets))), drawn_clusters=True)
    assert (found.method, found.low > 0) == ("t over clusters", clear)


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


@pytest.mark.parametrize(("moved", "is_clear"), [(5, False), (8, True)])
def test_few_items_that_moved_under_every_seed_are_not_clear_of_zero(moved: int, is_clear: bool) -> None:
    lost = [0.0] * moved + [1.0] * (24 - moved)
    change = change_over_seeds([1.0] * 24, {"1": lost, "2": lost}, ["a"] * 24)
    assert (change.high < 0) == is_clear, str(change)


def test_no_difference_under_any_seed_is_exactly_zero() -> None:
    over = change_over_seeds([0.5, 1.0], {"1": [0.5, 1.0], "2": [0.5, 1.0]}, ["a", "b"])
    assert (over.mean, over.low, over.high) == (0.0, 0.0, 0.0)


def test_one_seed_is_no_change_over_seeds() -> None:
    with pytest.raises(ValueError, match="two seeds or more, but got 1"):
        change_over_seeds([0.0], {"1": [1.0]}, ["a"])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        paired_change([0.0], [0.0, 1.0], ["a"])


def test_a_ratio_over_one_template_is_not_certain() -> None:
    gains = np.random.default_rng(8).normal(1, 0.5, 12)
    value, low, high = ratio(gains.tolist(), (0.5 * gains**2).tolist(), ["a"] * 12)
    assert low < value < high


def test_a_ratio_counts_clusters_and_not_their_items() -> None:
    gains = np.random.default_rng(8).normal(1, 0.5, 20).repeat(10)
    kept = (0.5 * gains**2).tolist()
    _, low, high = ratio(gains.tolist(), kept, np.arange(20).repeat(10).astype(str).tolist())
    _, narrow_low, narrow_high = ratio(gains.tolist(), kept, [str(item) for item in range(200)])
    assert high - low > 2 * (narrow_high - narrow_low)


def test_a_ratio_to_what_may_be_nothing_has_no_end() -> None:
    _, low, high = ratio([1.0, -1.0] * 10 + [0.5], [1.0] * 21, [str(item) for item in range(21)])
    assert low > 0 and high == np.inf


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


def test_items_that_changed_alike_under_every_seed_are_as_uncertain_as_they_are_few() -> None:
    def over_seeds(count: int) -> tuple[float, float]:
        change = change_over_seeds([1.0] * count, {str(seed): [0.0] * count for seed in range(3)}, ["a"] * count)
        return change.low, change.high

    assert over_seeds(4)[1] >= 0  # exact McNemar of 4 lost and none won: .125
    low, high = over_seeds(8)
    assert low == -1.0 and -1.0 < high < 0
