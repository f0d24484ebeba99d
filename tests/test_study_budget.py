"""A study's budget is counted over the study and all its workers: trials, time and cost."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import small
from told_studies import START, complete, empty, ended

from tuning.asked import ask, extend, limits, wish
from tuning.budget import RESUMED_KEY, RETRY_KEY, left, price_of, spent
from tuning.errors import BadRecipe, NothingToExtend
from tuning.recipe import Recipe


def timed(*spans: tuple[float, float]) -> optuna.Study:
    """A study whose finished trials began and took so many seconds."""
    study = empty()
    for began, seconds in spans:
        study.add_trial(complete(0.1, -0.1, began=START + began, seconds=seconds))
    return study


def limited(**study: object) -> Recipe:
    return small(Path("backbone")).with_values({f"study.{name}": value for name, value in study.items()})


def test_two_workers_at_once_use_the_time_once_and_the_cost_twice() -> None:
    used = spent(timed((0.0, 60.0), (0.0, 40.0), (30.0, 60.0)), START + 500)
    assert (used.wall_s, used.worker_s, used.longest_s) == (90.0, 160.0, 60.0)


def test_a_pause_between_two_trials_uses_no_time() -> None:
    assert spent(timed((0.0, 60.0), (1000.0, 60.0)), START + 9000).wall_s == 120.0


def test_a_trial_that_runs_counts_until_now() -> None:
    study = timed((0.0, 60.0))
    study.add_trial(ended(TrialState.RUNNING, began=START + 100))
    assert spent(study, START + 130).worker_s == 90.0


def test_a_killed_trial_counts_no_longer_than_the_longest_that_ended() -> None:
    study = timed((0.0, 60.0))
    study.add_trial(ended(TrialState.FAIL, began=START))  # found dead years later
    assert spent(study, START + 130).worker_s == 120.0


def test_what_a_lost_worker_had_finished_counts_once() -> None:
    study = timed((0.0, 60.0))
    study.add_trial(ended(TrialState.FAIL, began=START + 100))
    retry = {RETRY_KEY: 1, RESUMED_KEY: True}
    study.add_trial(complete(0.1, -0.1, began=START + 200, seconds=50.0, **retry))
    assert spent(study, START + 500).worker_s == 110.0
    anew = timed((0.0, 60.0))
    anew.add_trial(ended(TrialState.FAIL, began=START + 100))
    anew.add_trial(complete(0.1, -0.1, began=START + 200, seconds=50.0, **{RETRY_KEY: 1}))  # its work was done again
    assert spent(anew, START + 500).worker_s == 170.0


def test_of_workers_that_began_at_once_the_later_one_has_no_budget_left() -> None:
    study, priced = timed((0.0, 3600.0)), limited(max_cost=2.3, price_per_hour=1.0, trials=9)
    for _ in range(2):
        study.add_trial(ended(TrialState.RUNNING, began=START + 4000))
    now = START + 4000
    assert left(study, priced, now, before=1).may_begin
    assert not left(study, priced, now, before=2).may_begin
    assert not left(study, limited(trials=2), now, before=2).may_begin


def test_trials_are_counted_with_those_that_run() -> None:
    study = timed((0.0, 1.0))
    study.add_trial(ended(TrialState.RUNNING))
    two, three = left(study, limited(trials=2)), left(study, limited(trials=3))
    assert (two.trials, two.may_begin, two.may_come) == (0, False, True)
    assert (three.trials, three.may_begin) == (1, True)


def test_failed_trials_are_no_finished_ones() -> None:
    study = timed((0.0, 1.0))
    study.add_trial(ended(TrialState.FAIL, seconds=5.0))
    study.add_trial(ended(TrialState.PRUNED, seconds=5.0))
    assert left(study, limited(trials=4)).trials == 2


@pytest.mark.parametrize(("max_cost", "may_begin"), [(2.0, False), (2.3, True)])
def test_no_trial_begins_that_could_exceed_the_cost(max_cost: float, may_begin: bool) -> None:
    # An hour was spent; one more trial may take 1.25 hours.
    study = timed((0.0, 3600.0))
    found = left(study, limited(trials=9, max_cost=max_cost, price_per_hour=1.0, currency="EUR"), START + 3600)
    assert found.may_begin is may_begin
    assert found.cost == pytest.approx(max_cost - 1.0)
    assert found.used_up == ("" if may_begin else "budget of 2.00 EUR is used up by 1 trials")


def test_what_runs_is_paid_before_another_begins() -> None:
    study = timed((0.0, 3600.0))
    recipe = limited(trials=9, max_cost=2.3, price_per_hour=1.0)
    study.add_trial(ended(TrialState.RUNNING, began=START + 3600))
    assert not left(study, recipe, START + 3600).may_begin


@pytest.mark.parametrize(
    ("wall_s", "min_trials", "may_begin"), [(50.0, 0, True), (90.0, 0, False), (90.0, 9, True), (210.0, 9, False)]
)
def test_a_time_budget_leaves_the_least_number_of_trials_within_twice_of_it(
    wall_s: float, min_trials: int, may_begin: bool
) -> None:
    study = timed((0.0, wall_s - 20.0), (wall_s - 20.0, 20.0)) if wall_s > 60 else timed((0.0, 30.0), (30.0, 20.0))
    recipe = limited(trials=9, time_budget_s=100.0, min_trials=min_trials)
    assert left(study, recipe, START + wall_s).may_begin is may_begin


def test_a_cost_without_a_price_is_refused() -> None:
    with pytest.raises(BadRecipe, match="max_cost is counted by price_per_hour"):
        limited(max_cost=5.0)


def test_limits_and_price_are_no_part_of_what_a_recipe_decides() -> None:
    assert limited(max_cost=5.0, price_per_hour=2.0, currency="EUR", keep_adapters=9).digest() == limited().digest()
    assert limited(trials=7).digest() != limited().digest()


def test_a_price_is_a_number_and_any_currency() -> None:
    assert price_of("2.50 EUR") == (2.5, "EUR") and price_of(" 3 ") == (3.0, "")
    for wrong in ("EUR", "-1", "nan", "0 EUR", ""):
        with pytest.raises(BadRecipe, match="price per hour is a number above 0"):
            price_of(wrong)


def test_a_study_runs_until_it_is_asked_otherwise() -> None:
    study = empty()
    assert wish(study) == "run"
    for what in ("pause", "run", "stop"):
        ask(study, what)
        assert wish(study) == what


def test_an_extension_is_in_all_and_twice_the_same_is_once() -> None:
    study, recipe = empty(), limited(trials=4, time_budget_s=10.0)
    for _ in range(2):
        extend(study, recipe, trials=6)
    extend(study, recipe, time_budget_s=20.0)
    assert (limits(study, recipe).trials, limits(study, recipe).time_budget_s) == (6, 20.0)
    assert left(study, recipe).trials == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "none was given"), ({"trials": 3}, "its trials is 4 and 3 was given"), ({"max_cost": 3.0}, "has no max_cost")],
)
def test_what_would_not_lengthen_a_study_is_refused(given: dict[str, float], said: str) -> None:
    study = empty()
    with pytest.raises(NothingToExtend, match=said):
        extend(study, limited(trials=4), **given)  # type: ignore[arg-type]
    assert "extended" not in study.user_attrs
