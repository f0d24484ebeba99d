"""Hypotheses and their weights: likelihoods accumulate, what is no verdict moves nothing, a collapsed set is drawn anew."""

from __future__ import annotations

import math
import random

import pytest

from engine.decoding.hypotheses import OPTIONS, Hypotheses, expected_likelihood

THREE = Hypotheses.alike(("in the box", "in the bag", "on the shelf"))


def test_weights_accumulate_over_steps() -> None:
    once = THREE.weighed([0.9, 0.2, 0.2])
    twice = once.weighed([0.9, 0.2, 0.2])
    assert once.weights == pytest.approx((0.9 / 1.3, 0.2 / 1.3, 0.2 / 1.3))
    assert twice.weights == pytest.approx((0.81 / 0.89, 0.04 / 0.89, 0.04 / 0.89))


def test_likelihoods_that_are_all_alike_change_no_weight() -> None:
    tilted = THREE.weighed([0.9, 0.2, 0.05])
    assert tilted.weighed([0.6] * 3).weights == pytest.approx(tilted.weights)


def test_without_a_verdict_a_hypothesis_keeps_its_share_and_is_not_counted_as_unlikely() -> None:
    tilted = THREE.weighed([0.5, 0.3, 0.2])
    found = tilted.weighed([0.9, None, 0.05])
    assert found.weights[1] == pytest.approx(tilted.weights[1]) and sum(found.weights) == pytest.approx(1.0)
    assert found.weights[0] / found.weights[2] == pytest.approx(0.5 * 0.9 / (0.2 * 0.05))
    assert tilted.weighed([None] * 3) == tilted and tilted.weighed([0.0] * 3) == tilted


def test_a_verdict_is_the_mean_of_the_options_by_their_probability() -> None:
    sure = [-math.inf] * 6
    sure[0] = math.log(0.4)
    assert expected_likelihood(sure) == pytest.approx(0.9)
    even = [math.log(0.1)] * 6
    assert expected_likelihood(even) == pytest.approx(sum(value for _, _, value in OPTIONS) / 6)


@pytest.mark.parametrize("logprobs", [[-30.0] * 6, [math.nan] * 6, [-1.0] * 5, [-math.inf] * 6])
def test_options_that_nobody_would_write_are_no_verdict(logprobs: list[float]) -> None:
    assert expected_likelihood(logprobs) is None


def test_a_set_collapses_below_half_of_its_effective_size_and_is_drawn_by_its_weights() -> None:
    collapsed = THREE.weighed([0.9, 0.05, 0.05])
    assert THREE.effective_size == pytest.approx(3) and not THREE.has_collapsed
    assert collapsed.effective_size < 1.5 and collapsed.has_collapsed
    half = Hypotheses(("a", "b", "c", "d"), (0.5, 0.5, 0.0, 0.0))
    assert half.effective_size == 2 and not half.has_collapsed
    drawn = [collapsed.resampled(random.Random(seed)) for seed in range(400)]
    assert all(one.weights == pytest.approx((1 / 3,) * 3) for one in drawn)
    share = sum(one.texts.count("in the box") for one in drawn) / 1200
    assert share == pytest.approx(0.9, abs=0.03)
    assert collapsed.resampled(random.Random("7/2")) == collapsed.resampled(random.Random("7/2"))


def test_hypotheses_that_say_the_same_have_no_diversity() -> None:
    assert Hypotheses.alike(("In the box.", "in the box")).diversity == 0.0
    assert Hypotheses.alike(("in the box", "under a hat")).diversity == 1.0


def test_the_likeliest_make_up_nine_tenths_and_equal_texts_are_one() -> None:
    assert Hypotheses(("a", "b", "a", "c"), (0.3, 0.05, 0.3, 0.35)).likeliest() == ("a", "c")
    assert THREE.weighed([0.9, 0.01, 0.01]).likeliest() == ("in the box",)
