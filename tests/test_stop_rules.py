"""When a fit is stopped by what was read at a checkpoint, and when it is not: every rule with both its controls."""

from __future__ import annotations

import json

import pytest

from benchmarks.stop_curves import made_up
from benchmarks.stop_rules import replay
from tuning.errors import BadRecipe, Diverged
from tuning.loop import require_steady
from tuning.methods.sft import SFTSpec
from tuning.recipe import Recipe
from tuning.space import search_digest
from tuning.stop_curve import FamilyChange, FitReading, Point
from tuning.stop_probe import checkpoint_step
from tuning.stop_rules import below_floor, dominated, stopped
from tuning.stop_settings import StopRecipe

STOP = StopRecipe()


def point(gain: float, change: float, scale: float = 1.0, noise: float = 0.01) -> Point:
    """One family besides one that lost nothing; `noise` is the standard error of the gain and, in margins, of the change."""
    lost = FamilyChange(change, change - 2 * noise, change + 2 * noise, noise)
    families = {"kin": lost, "kept": FamilyChange(0.0, 0.0, 0.0, 0.0)}
    return Point(scale, gain, noise, families)


def reading(*points: Point, checkpoint: float = 0.33) -> FitReading:
    return FitReading(checkpoint, (32, 8), points, points[0].scale, 1.0)


def test_a_family_that_is_surely_lost_at_the_smallest_scale_stops_the_fit() -> None:
    found = below_floor(reading(point(0.3, -5.0, 0.25), point(0.5, -40.0)), floor=1.0)
    assert found is not None and "after 33% of the fit kin has lost at least 5.0 margins even at scale 0.25" in found


def test_what_a_smaller_scale_keeps_is_no_reason_to_stop() -> None:
    assert below_floor(reading(point(0.1, -0.2, 0.25), point(0.5, -40.0)), floor=1.0) is None


def test_a_loss_that_few_items_cannot_tell_from_the_floor_is_no_reason_to_stop() -> None:
    assert below_floor(reading(point(0.1, -3.0, noise=1.5)), floor=1.0) is None
    assert below_floor(reading(point(0.1, -3.0, noise=0.5)), floor=1.0) is not None


def test_losses_that_no_family_shows_alone_are_seen_in_their_mean() -> None:
    families = {str(n): FamilyChange(-1.6, -2.4, -0.8, 0.4) for n in range(9)}
    assert "the mean family" in (below_floor(reading(Point(1.0, 0.1, 0.01, families)), floor=1.0) or "")
    one = {"0": families["0"]}
    assert below_floor(reading(Point(1.0, 0.1, 0.01, one)), floor=1.0) is None


def test_a_trial_is_dominated_by_so_many_that_are_better_in_both() -> None:
    poor, good = reading(point(0.02, -0.6)), reading(point(0.3, -0.1))
    assert dominated(poor, [good] * 2, STOP) is None
    assert "3 of 3 other trials are better in gain" in (dominated(poor, [good] * 3, STOP) or "")
    assert dominated(good, [poor] * 3, STOP) is None


def test_a_trial_that_is_worse_in_one_objective_alone_goes_on() -> None:
    gentle, strong = reading(point(0.1, -0.3)), reading(point(0.3, -0.9))
    assert dominated(gentle, [strong] * 9, STOP) is None and dominated(strong, [gentle] * 9, STOP) is None


def test_where_neither_loses_anything_the_gain_decides() -> None:
    slow, quick = reading(point(0.0, -0.01)), reading(point(0.3, -0.05))
    assert dominated(slow, [quick] * 3, STOP) is not None
    assert dominated(quick, [slow] * 3, STOP) is None


def test_a_trial_goes_on_that_may_have_a_scale_between_those_read_which_is_on_the_front() -> None:
    rival = reading(point(0.2, 0.0, 0.25), point(0.3, -0.5))
    assert dominated(reading(point(0.0, 0.0, 0.25), point(0.25, -5.0)), [rival] * 3, STOP) is None
    assert dominated(reading(point(0.0, 0.0, 0.25), point(0.1, -5.0)), [rival] * 3, STOP) is not None


def test_where_the_smallest_scale_was_not_read_it_is_taken_to_lose_nothing() -> None:
    only_largest = FitReading(0.33, (32, 8), (point(0.1, -0.9),), 0.25, 1.0)
    lossy, clean = reading(point(0.3, -0.5)), reading(point(0.3, -0.05))
    assert dominated(only_largest, [lossy] * 3, STOP) is None and dominated(only_largest, [clean] * 3, STOP) is not None
    assert dominated(reading(point(0.1, -0.9)), [lossy] * 3, STOP) is not None
    assert below_floor(FitReading(0.33, (32, 8), (point(0.1, -50.0),), 0.25, 1.0), floor=1.0) is None


def test_noise_and_epsilon_are_allowed_for() -> None:
    near, far = reading(point(0.25, -0.3)), reading(point(0.3, -0.05))
    assert dominated(near, [far] * 3, STOP) is not None
    assert dominated(near, [far] * 3, StopRecipe(epsilon_gain=0.1)) is None
    assert dominated(reading(point(0.25, -0.3, noise=0.1)), [far] * 3, STOP) is None


def test_only_readings_at_the_same_checkpoint_and_of_the_same_items_are_compared() -> None:
    poor, later = reading(point(0.02, -0.6)), reading(point(0.3, -0.1), checkpoint=0.67)
    other_items = FitReading(0.33, (64, 8), (point(0.3, -0.1),), 1.0, 1.0)
    assert dominated(poor, [later] * 3, STOP) is None and dominated(poor, [other_items] * 3, STOP) is None


def test_a_rule_that_is_not_named_stops_nothing() -> None:
    lost, rivals = reading(point(0.02, -5.0)), [reading(point(0.3, -0.1))] * 3
    assert stopped(lost, rivals, StopRecipe(rules=())) is None
    assert "floor" in (stopped(lost, rivals, StopRecipe(rules=("floor",))) or "")
    assert "dominated" in (stopped(lost, rivals, StopRecipe(rules=("dominated",))) or "")


def test_a_loss_that_explodes_is_a_divergence() -> None:
    spec = SFTSpec(steps=20, learning_rate=1e-3)
    with pytest.raises(Diverged, match=r"began at 1 and stayed above 5 for 5 steps, 9 at step 9 of 20 with learning_rate=0.001"):
        require_steady([1.0, 1.1, 0.9, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0], spec)


@pytest.mark.parametrize(
    "losses",
    [
        [1.0, 1.1, 0.9, 9.0, 9.0, 9.0, 9.0, 2.0, 9.0],  # a spike that passes
        [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],  # harder rows: less than five times its start
        [0.02, 0.02, 0.02, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],  # less than 3 nats above it
        [9.0, 9.0, 9.0, 9.0, 9.0],  # too few steps to tell
    ],
)
def test_a_loss_that_only_rises_is_none(losses: list[float]) -> None:
    require_steady(losses, SFTSpec())


def test_a_checkpoint_is_the_first_step_that_reaches_its_share() -> None:
    assert [checkpoint_step(share, 20) for share in (0.01, 0.33, 0.35, 1.0)] == [1, 7, 7, 20]
    assert checkpoint_step(1 / 3, 30) == 10


def test_a_recipe_says_what_its_stop_table_must_be() -> None:
    recipe = Recipe(name="x", domain="icd10")
    with pytest.raises(BadRecipe, match=r"rising shares of a fit's steps in \(0, 1\], but got \[0.5, 0.2\]"):
        recipe.with_values({"study.stop.checkpoints": (0.5, 0.2)})
    with pytest.raises(BadRecipe, match="pruner is 'hyperband' and mode 'pareto'.*stop.rules hold in both"):
        recipe.with_values({"study.stop.pruner": "hyperband"})
    both = {"study.mode": "constrained", "study.stop.pruner": "hyperband"}
    assert recipe.with_values(both).study.stop.pruner == "hyperband"


def test_trials_under_other_rules_belong_to_one_study_and_those_of_fewer_items_do_not() -> None:
    recipe = Recipe(name="x", domain="icd10", study={"mode": "constrained"})
    ruled = recipe.with_values({"study.stop.floor": 3.0, "study.stop.checkpoints": (0.5,), "study.stop.pruner": "median"})
    by_item = recipe.with_values({"study.stop.pruner": "wilcoxon"})
    assert search_digest(ruled) == search_digest(recipe) != search_digest(by_item)


def test_a_reading_is_the_same_after_it_was_stored() -> None:
    found = reading(point(0.1, -0.2, 0.25), point(0.3, -2.0))
    assert FitReading.of(json.loads(json.dumps(found.as_dict()))) == found
    assert found.chosen.scale == 0.25 and found.told["constraints"]["kin"] == pytest.approx(-0.8)
    assert str(found).startswith("after 33% of the fit: gain +0.100 at scale 0.25, retention -0.10 margins, worst kin -0.2")


def test_over_many_studies_the_rules_save_time_and_keep_the_best_trial() -> None:
    studies = [made_up(seed, trials=30) for seed in range(8)]
    found = [replay(rows, range(len(rows)), STOP) for rows in studies]
    assert not any(one.lost_best for one in found) and sum(one.saved for one in found) / len(found) > 0.04
    hasty = StopRecipe(floor=0.001, epsilon_gain=0.0, rivals=1)
    others = [replay(rows, range(len(rows)), hasty) for rows in studies]
    assert any(one.lost_best for one in others) and sum(one.saved for one in others) > sum(one.saved for one in found)
    unruled = [replay(rows, range(len(rows)), StopRecipe(rules=())) for rows in studies]
    assert all(one.stopped == 0 and one.saved < 0 for one in unruled)
