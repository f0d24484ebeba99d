"""What a sweep costs, by trials that were recorded: where a draw comes from, what it costs, and when an area is reached."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.stop_curves import made_up
from benchmarks.sweep_cost import ARMS, Found, Surrogate, cost, swept
from benchmarks.sweep_trials import RECIPE, settings
from tuning.recipe import Recipe

RANDOM, _, OURS, STOPPING = ARMS
LOADED = Recipe.load(RECIPE)


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    rows = made_up(0, trials=24)
    return Surrogate([{**row, "params": settings(LOADED, number)} for number, row in enumerate(rows)], LOADED)


def test_what_was_recorded_is_drawn_where_it_lies_and_seldom_far_from_there(surrogate: Surrogate) -> None:
    drawn = random.Random(0)
    at, far = surrogate.rows[3], {**surrogate.rows[3]["params"], "method.target": "both", "method.prompt": "neither"}
    assert [surrogate(at["params"], drawn) for _ in range(200)].count(at) > 60
    assert [surrogate(far, drawn) for _ in range(200)].count(at) < 60


def test_a_setting_is_the_same_whenever_it_is_drawn_and_another_for_another_trial() -> None:
    assert settings(LOADED, 5) == settings(LOADED, 5) != settings(LOADED, 6)


def test_a_stopped_trial_costs_what_it_took_until_then(surrogate: Surrogate) -> None:
    row = surrogate.rows[0]
    seconds, (first, second) = row["seconds"], row["curve"]
    at_first = seconds["load"] + seconds["fit"] * first["checkpoint"] + first["seconds"]
    assert cost(row, [first], ends=True) == pytest.approx(at_first)
    assert at_first < cost(row, [], ends=False) < cost(row, [first], ends=False) < cost(row, [first, second], ends=False)


def test_every_arm_finds_more_the_longer_it_searches(surrogate: Surrogate) -> None:
    ends = swept(RANDOM, surrogate, seed=0, budget_s=math.inf)
    for arm in (OURS, STOPPING):
        found = swept(arm, surrogate, seed=0, budget_s=ends.seconds[-1] / 4)
        assert list(found.area) == sorted(found.area) and found.area[-1] > 0
        assert found.seconds[-1] >= ends.seconds[-1] / 4 > found.seconds[-2]


def test_an_area_that_was_never_found_costs_infinitely_much() -> None:
    found = Found((1.0, 2.0, 3.0), (0.0, 0.5, 0.5))
    assert found.cost_of(0.5) == 2 and math.isinf(found.cost_of(0.6))


def test_what_is_expected_lies_between_what_was_measured_and_nearest_to_what_is_near(surrogate: Surrogate) -> None:
    gains = [row["score"]["chosen"]["domain_gain"] for row in surrogate.rows]
    expected = [surrogate.expected(row["params"])[0] for row in surrogate.rows]
    assert all(min(gains) < one < max(gains) for one in expected)
    assert np.corrcoef(expected, gains)[0, 1] > 0.5
