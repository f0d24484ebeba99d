"""What two sweeps are compared by: the area of their frontiers, and whether one point is at least as good in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.method_arms import SHORT
from benchmarks.method_sweeps import Point, frontier, recipes
from tuning.hypervolume import hypervolume
from tuning.recipe import Recipe

QUICKSTART = Recipe.load(Path(__file__).parent.parent / "recipes" / "quickstart.toml")


def test_the_area_is_that_under_the_frontier() -> None:
    points = [Point(0.1, -0.2), Point(0.3, -0.6), Point(0.05, -0.5)]
    assert frontier(points) == [Point(0.3, -0.6), Point(0.1, -0.2)]
    assert hypervolume(points) == hypervolume(frontier(points)) == pytest.approx(0.3 * 0.4 + 0.1 * 0.4)


def test_a_point_dominates_one_that_is_better_in_nothing() -> None:
    assert Point(0.2, -0.1).dominates(Point(0.2, -0.2)) and not Point(0.2, -0.1).dominates(Point(0.2, -0.1))
    assert not Point(0.3, -0.3).dominates(Point(0.2, -0.2))


def test_both_sweeps_have_the_same_budget_and_one_of_them_draws_the_method() -> None:
    over, plain = recipes(QUICKSTART, 1, 12, ["sft", "star", "rlag"])
    assert over.methods() == ("sft", "star", "rlag") and plain.methods() == ("sft",)
    assert over.study == plain.study and over.study.trials == 12 and over.study.seed == 1
    assert over.method == plain.method and over.method.token_budget == SHORT and over.evaluation == plain.evaluation
    assert not {"method.kl_weight", "method.weight_decay"} & set(plain.search)
