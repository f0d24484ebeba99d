"""Tests of a change: worked p-values, and verdicts that know when nothing was shown."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.significance import holm, non_inferiority, permutation_p_value
from evaluation.statistics import flips


def own(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def test_five_losses_of_five_are_one_pattern_of_thirty_two() -> None:
    base, adapted = [1.0] * 5, [0.9, 0.8, 0.7, 0.6, 0.5]
    assert permutation_p_value(base, adapted, own(5), "less") == pytest.approx(1 / 32)
    assert permutation_p_value(base, adapted, own(5)) == pytest.approx(2 / 32)
    assert permutation_p_value(base, adapted, own(5), "greater") == 1.0


def test_flipped_signs_of_right_or_wrong_are_the_exact_mcnemar_test() -> None:
    base, adapted = [1.0] * 9 + [0.0] * 2 + [1.0] * 20, [0.0] * 9 + [1.0] * 2 + [1.0] * 20
    # 2 P(at least 9 of 11) = 2 (55 + 11 + 1) / 2048
    assert flips(base, adapted).p_value == pytest.approx(2 * 67 / 2048)
    assert permutation_p_value(base, adapted, own(31)) == pytest.approx(2 * 67 / 2048)


def test_items_of_one_cluster_flip_together() -> None:
    base, adapted = [1.0] * 50, [0.0] * 50
    assert permutation_p_value(base, adapted, own(50), "less") < 0.001
    assert permutation_p_value(base, adapted, [str(i // 10) for i in range(50)], "less") == pytest.approx(1 / 32)


def test_nothing_changed_is_no_evidence() -> None:
    assert permutation_p_value([1.0, 0.0], [1.0, 0.0], own(2)) == 1.0
    assert permutation_p_value([1.0, 0.0], [0.0, 0.0], own(2)) == 1.0  # one sign says nothing


def test_under_no_change_small_p_values_are_rare() -> None:
    rng = np.random.default_rng(0)
    found = [permutation_p_value([0.0] * 12, rng.normal(0, 1, 12).tolist(), own(12), draws=300, seed=i) for i in range(200)]
    assert np.mean(np.array(found) <= 0.1) <= 0.16


def test_holm_by_hand() -> None:
    # 3 x 0.01 = 0.03; 2 x 0.04 = 0.08; 1 x 0.03 comes second: 2 x 0.03 = 0.06, then 1 x 0.04 is raised to it
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {
        "a": pytest.approx(0.06),
        "b": pytest.approx(0.03),
        "c": pytest.approx(0.06),
    }
    assert list(holm({"b": 0.9, "a": 0.8})) == ["b", "a"] and holm({"b": 0.9, "a": 0.8})["a"] == 1.0
    assert holm({}) == {}


def test_a_family_without_a_test_is_refused() -> None:
    with pytest.raises(ValueError, match="that of 'a' is nan"):
        holm({"a": float("nan")})


def test_the_three_verdicts() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, 200)
    base = np.zeros(200)
    verdicts = [
        non_inferiority(base, shift + noise - noise.mean(), own(200), margin=0.05).verdict for shift in (0.0, -0.1, -0.05)
    ]
    assert verdicts == ["pass", "fail", "inconclusive"]


def test_an_inconclusive_verdict_says_how_many_items_would_decide() -> None:
    values = np.array([-1.0] + [1.0] + [0.0] * 38)
    found = non_inferiority(np.zeros(40), values, own(40), margin=0.05)
    # variance 2 / 39, 6.1826 x (2 / 39) / 0.0025
    assert found.verdict == "inconclusive" and found.items_needed == pytest.approx(6.1826 * 2 / 39 / 0.0025, abs=1)
    assert f"{found.items_needed} items would decide" in str(found)


def test_the_items_that_would_decide_do_decide() -> None:
    rng = np.random.default_rng(2)
    decided = 0
    for _ in range(100):
        values = rng.choice([-1.0, 1.0, 0.0], p=[0.05, 0.05, 0.9], size=387)
        decided += non_inferiority(np.zeros(387), values, own(387), margin=0.04).verdict == "pass"
    assert 0.7 <= decided / 100 <= 0.9


@pytest.mark.parametrize(("items", "verdict"), [(58, "inconclusive"), (59, "pass")])
def test_no_change_at_all_passes_by_the_rule_of_three(items: int, verdict: str) -> None:
    found = non_inferiority([1.0] * items, [1.0] * items, own(items), margin=0.05)
    assert found.verdict == verdict
    assert found.items_needed == (59 if verdict == "inconclusive" else None)


def test_one_small_loss_of_all_items_alike_passes_no_sooner_than_what_it_leaves_of_the_margin() -> None:
    few, many = (non_inferiority([0.0] * items, [-0.01] * items, own(items), margin=0.02) for items in (2, 299))
    # The others may be 1 % of the items: (0.02 - 0.01) / (1 - 0.01), of which 296 would show one.
    assert (few.verdict, few.items_needed) == ("inconclusive", 296) and many.verdict == "pass"


def test_what_all_items_of_a_cluster_kept_is_one_of_as_many_clusters() -> None:
    def verdict(items: int) -> str:
        return non_inferiority([1.0] * items, [1.0] * items, [str(item // 10) for item in range(items)], margin=0.05).verdict

    assert [verdict(580), verdict(590)] == ["inconclusive", "pass"]


def test_no_change_at_all_in_a_wider_span_needs_more_items() -> None:
    narrow, wide = (non_inferiority([0.0] * 60, [0.0] * 60, own(60), margin=0.05, span=span) for span in (1.0, 2.0))
    assert (narrow.verdict, wide.verdict, wide.items_needed) == ("pass", "inconclusive", 119)


def test_a_mean_beyond_the_margin_is_no_fail_before_its_interval_is() -> None:
    few, many = (non_inferiority([1.0] * n, [0.0] * (n // 8) + [1.0] * (n - n // 8), own(n), margin=0.05) for n in (24, 400))
    assert few.change.mean == many.change.mean < -0.05
    assert (few.verdict, many.verdict) == ("inconclusive", "fail")


def test_a_loss_of_the_margin_passes_about_as_often_as_alpha_says() -> None:
    rng = np.random.default_rng(3)
    passed = 0
    for seed in range(200):
        values = rng.normal(-0.1, 1, 150)
        passed += non_inferiority(np.zeros(150), values, own(150), margin=0.1, seed=seed).verdict == "pass"
    assert passed / 200 <= 0.09


def test_a_margin_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0, but got 0"):
        non_inferiority([0.0], [0.0], ["a"], margin=0)
