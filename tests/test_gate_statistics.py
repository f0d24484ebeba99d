"""The betting bounds: never wrong more often than alpha, and tight enough to be of use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from registry.gate_statistics import PairedItems, log_wealth, lower_bound, units_needed, upper_bound

ALPHA, MARGIN = 0.05, 0.05
LOOKS = range(50, 601, 50)


def draws(rng: np.random.Generator, lost: float, gained: float, count: int) -> np.ndarray:
    return rng.choice([-1.0, 0.0, 1.0], p=[lost, 1 - lost - gained, gained], size=count)


def passes_at_any_look(units: np.ndarray, margin: float = MARGIN) -> bool:
    return any(log_wealth(units[:n], -margin) >= -math.log(ALPHA) for n in LOOKS)


@pytest.mark.parametrize("gained", [0.0, 0.05, 0.2])
def test_looking_after_every_round_passes_a_loss_of_exactly_the_margin_at_most_alpha_of_the_time(gained: float) -> None:
    rng = np.random.default_rng(1)
    wrong = sum(passes_at_any_look(draws(rng, MARGIN + gained, gained, max(LOOKS))) for _ in range(2000))
    assert wrong / 2000 <= ALPHA


def test_families_of_different_means_pooled_at_the_boundary_pass_at_most_alpha_of_the_time() -> None:
    # One family of four lost 20 points, the others nothing: the pool's mean is exactly at a margin of 5.
    rng = np.random.default_rng(2)

    def pool(size: int) -> np.ndarray:
        families = [draws(rng, 0.2, 0.0, size), *(np.zeros(size) for _ in range(3))]
        return np.stack(families, axis=1).reshape(-1)

    wrong = sum(passes_at_any_look(pool(150)) for _ in range(2000))
    assert wrong / 2000 <= ALPHA


def test_correlated_items_of_a_cluster_do_not_count_as_independent() -> None:
    # Whole clusters are lost together: 12 items each, so items would look like 12 times the evidence.
    rng = np.random.default_rng(3)
    as_clusters = as_items = 0
    for _ in range(500):
        lost = np.repeat(draws(rng, MARGIN, 0.0, 60), 12)
        names = np.repeat(np.arange(60), 12)
        items = PairedItems.of(np.ones(720), 1 + lost, names)
        as_clusters += log_wealth(items.units, -MARGIN) >= -math.log(ALPHA)
        as_items += log_wealth(items.differences, -MARGIN) >= -math.log(ALPHA)
    assert as_clusters / 500 <= ALPHA < as_items / 500


def test_a_model_that_lost_nothing_and_varies_a_little_usually_passes() -> None:
    rng = np.random.default_rng(4)
    right = sum(passes_at_any_look(draws(rng, 0.02, 0.02, max(LOOKS))) for _ in range(300))
    assert right / 300 >= 0.9


@pytest.mark.parametrize(("margin", "rule_of_three"), [(0.02, 149), (0.05, 59), (0.15, 19)])
def test_no_difference_at_all_passes_only_with_enough_items(margin: float, rule_of_three: int) -> None:
    # Fewer items than ln(alpha) / ln(1 - margin) could all be spared by a model that does lose the margin.
    assert log_wealth(np.zeros(rule_of_three - 1), -margin) < -math.log(ALPHA)
    assert log_wealth(np.zeros(2 * rule_of_three), -margin) >= -math.log(ALPHA)


def test_the_bounds_enclose_the_mean_and_meet_the_wealth() -> None:
    units = draws(np.random.default_rng(5), 0.1, 0.2, 400)
    low, high = lower_bound(units, ALPHA), upper_bound(units, ALPHA)
    assert low < units.mean() < high
    assert log_wealth(units, low - 1e-6) >= -math.log(ALPHA) > log_wealth(units, low + 1e-6)


def test_no_item_bounds_nothing() -> None:
    assert lower_bound(np.empty(0), ALPHA) == pytest.approx(-1)
    assert upper_bound(np.empty(0), ALPHA) == pytest.approx(1)
    assert units_needed(np.empty(0), -MARGIN, ALPHA) is None


def test_the_order_of_items_does_not_matter() -> None:
    units = draws(np.random.default_rng(6), 0.1, 0.1, 200)
    assert lower_bound(units, ALPHA) == pytest.approx(lower_bound(units[::-1].copy(), ALPHA))


def test_as_many_more_items_as_are_said_to_be_needed_are_needed() -> None:
    more = units_needed(np.zeros(30), -MARGIN, ALPHA)
    assert more is not None and more > 0
    assert log_wealth(np.zeros(30 + more), -MARGIN) >= -math.log(ALPHA) > log_wealth(np.zeros(29 + more), -MARGIN)


def test_more_of_a_real_loss_never_passes() -> None:
    assert units_needed(np.array([-1.0, 0.0] * 20), -MARGIN, ALPHA) is None


def test_a_narrow_span_needs_fewer_items() -> None:
    units = np.full(60, -0.001)
    assert lower_bound(units, ALPHA, span=0.25) > lower_bound(units, ALPHA, span=1.0)


def test_a_difference_beyond_the_span_widens_it() -> None:
    units = np.append(np.zeros(99), -3.0)
    assert lower_bound(units, ALPHA) == pytest.approx(lower_bound(units, ALPHA, span=3.0))


def test_a_cluster_counts_once_and_a_fixed_set_of_clusters_does_not_hide_items() -> None:
    base, adapted, clusters = [1.0, 1.0, 1.0], [1.0, 0.0, 1.0], ["a", "a", "b"]
    assert sorted(PairedItems.of(base, adapted, clusters).units) == [-0.5, 0.0]
    assert sorted(PairedItems.of(base, adapted, clusters, fixed_clusters=True).units) == [-1.0, 0.0, 0.0]


def test_joined_items_count_by_clusters_unless_the_clusters_of_both_are_fixed() -> None:
    values = [1.0, 1.0], [0.0, 1.0], ["a", "a"]
    sampled, fixed = (PairedItems.of(*values, fixed_clusters=is_fixed) for is_fixed in (False, True))
    assert [len(one.joined(fixed).units) for one in (sampled, fixed)] == [1, 4]


def test_unpaired_or_unscored_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2, 1 and 2"):
        PairedItems.of([1.0, 1.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match="finite"):
        PairedItems.of([1.0], [float("nan")], ["a"])
