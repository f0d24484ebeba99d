"""What two sweeps are compared by: the area of their frontiers, and whether one point is at least as good in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.method_sweeps import Point, frontier, hypervolume, recipes
from benchmarks.methods import ARMS, LONG, SHORT, at_gain, matched
from tuning.methods import METHODS
from tuning.recipe import Recipe

QUICKSTART = Recipe.load(Path(__file__).parent.parent / "recipes" / "quickstart.toml")


def test_the_area_is_that_of_the_union_of_rectangles() -> None:
    points = [Point(0.1, -0.2), Point(0.3, -0.6), Point(0.05, -0.5)]
    assert frontier(points) == [Point(0.3, -0.6), Point(0.1, -0.2)]
    assert hypervolume(points) == pytest.approx(0.3 * 0.4 + 0.1 * 0.4)
    assert hypervolume([*points, *points]) == hypervolume(points)


def test_what_gains_nothing_or_loses_a_whole_margin_has_no_area() -> None:
    assert hypervolume([Point(0.0, 0.0), Point(-0.1, 0.0), Point(0.5, -1.0), Point(0.5, -2.0)]) == 0.0 == hypervolume([])


def test_a_point_dominates_one_that_is_better_in_nothing() -> None:
    assert Point(0.2, -0.1).dominates(Point(0.2, -0.2)) and not Point(0.2, -0.1).dominates(Point(0.2, -0.1))
    assert not Point(0.3, -0.3).dominates(Point(0.2, -0.2))


def test_both_sweeps_have_the_same_budget_and_one_of_them_draws_the_method() -> None:
    over, plain = recipes(QUICKSTART, 1, 12, ["sft", "star", "rlag"])
    assert over.methods() == ("sft", "star", "rlag") and plain.methods() == ("sft",)
    assert over.study == plain.study and over.study.trials == 12 and over.study.seed == 1
    assert over.method == plain.method and over.method.token_budget == SHORT and over.evaluation == plain.evaluation
    assert not {"method.kl_weight", "method.weight_decay"} & set(plain.search)


def test_every_method_has_an_arm_and_every_control_is_one() -> None:
    for budget in (SHORT, LONG):
        names = {QUICKSTART.with_values(arm.under(budget)).method.name for arm in ARMS.values()}
        assert names == set(METHODS)
    assert {arm.control for arm in ARMS.values()} - {None} <= set(ARMS)


def test_an_arm_and_its_control_are_compared_at_a_gain_that_both_reach() -> None:
    def row(arm: str, *scales: tuple[float, float]) -> dict[str, object]:
        told = [{"domain_gain": gain, "chain_changes": {"boxes": change, "kinship": 0.0}} for gain, change in scales]
        return {"arm": arm, "seed": 0, "outcome": {"score": {"scales": told}}}

    assert at_gain([{"domain_gain": 0.2, "chain_changes": {"boxes": -0.4}}], 0.1) == {"boxes": pytest.approx(-0.2)}
    said = matched([row("rlvr", (0.1, -0.01), (0.3, -0.03)), row("rlvr, coin", (0.2, -0.1))]).splitlines()
    assert said[-1] == "| rlvr | rlvr, coin | 0 | +0.200 | -0.0100 | -0.0500 | +0.0800 | +0.0000 |" and len(said) == 3
