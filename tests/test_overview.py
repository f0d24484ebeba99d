"""A study as it stands: hypervolume, the best, workers, what is left, and what each objective hangs on; and its pictures."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from small_studies import small
from told_studies import START, complete, empty, ended

from service.overview_view import lines, overview_view
from tuning.candidates import candidates_of
from tuning.hypervolume import front, hypervolume
from tuning.importance import GAIN, LEAST_TRIALS, RETENTION, importances
from tuning.overview import Overview, overview
from tuning.pictures import importances_picture, pareto_picture
from tuning.recipe import Recipe


@pytest.fixture
def recipe() -> Recipe:
    return small(Path("backbone"), **{"study.trials": 20, "study.price_per_hour": 2.0, "study.currency": "EUR"})


@pytest.fixture(scope="module")
def searched() -> optuna.Study:
    """Twenty trials: the gain hangs on one setting, the retention on the other."""
    study, draw = empty(), random.Random(3)
    for _ in range(20):
        rate, weight = draw.random(), draw.random()
        params = {"method.rate": rate, "method.weight": weight}
        study.add_trial(complete(rate / 3, -weight, params=params, began=START, seconds=30.0))
    return study


def test_hypervolume_is_the_area_above_the_reference() -> None:
    assert hypervolume([(0.2, -0.5)]) == pytest.approx(0.1)
    assert hypervolume([(0.2, -0.5), (0.1, 0.0)]) == pytest.approx(0.2 * 0.5 + 0.1 * 0.5)
    assert hypervolume([(0.2, -0.5), (0.1, -0.6)]) == pytest.approx(0.1)  # dominated
    assert hypervolume([]) == hypervolume([(-0.1, 0.0), (0.3, -2.0)]) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_is_what_counting_points_finds(seed: int) -> None:
    draw = random.Random(seed)
    points = [(draw.uniform(-0.2, 1.0), draw.uniform(-1.4, 0.0)) for _ in range(6)]
    grid = [((i + 0.5) / 200, -(j + 0.5) / 200) for i in range(200) for j in range(200)]
    counted = sum(any(g >= x and r >= y for g, r in points) for x, y in grid) / len(grid)
    assert hypervolume(points) == pytest.approx(counted, abs=0.01)


def test_the_front_holds_feasible_trials_that_none_beats() -> None:
    study = empty()
    for gain, retention, feasible in ((0.3, -0.5, True), (0.2, -0.2, True), (0.1, -0.3, True), (0.5, 0.0, False)):
        study.add_trial(complete(gain, retention, feasible=feasible))
    assert [candidate.trial for candidate in front(candidates_of(study))] == [0, 1]


def test_each_objective_hangs_on_its_own_setting(searched: optuna.Study) -> None:
    found = importances(searched)
    assert max(found[GAIN], key=found[GAIN].__getitem__) == "method.rate"
    assert max(found[RETENTION], key=found[RETENTION].__getitem__) == "method.weight"
    assert sum(found[GAIN].values()) == pytest.approx(1.0)


def test_too_few_trials_tell_no_importance_and_say_so(recipe: Recipe) -> None:
    study = empty()
    for number in range(LEAST_TRIALS - 1):
        study.add_trial(complete(0.1 * number, -0.1, params={"a": number / 10}))
    seen = overview(study, recipe)
    assert seen.importances == {}
    assert seen.no_importances == f"told from {LEAST_TRIALS} complete trials on, {LEAST_TRIALS - 1} are"


def test_trials_that_are_all_alike_tell_none_either(recipe: Recipe) -> None:
    study = empty()
    for _ in range(LEAST_TRIALS):
        study.add_trial(complete(0.1, -0.1))
    assert not any(importances(study).values())


def test_an_overview_counts_states_time_and_cost(searched: optuna.Study, recipe: Recipe) -> None:
    study = empty()
    study.add_trials(
        [*searched.get_trials()[:3], ended(TrialState.PRUNED, failure="Diverged: lower it", seconds=10.0, began=START)]
    )
    study.add_trial(ended(TrialState.RUNNING, began=START + 100, worker="machine:7"))
    seen = overview(study, recipe, now=START + 110)
    assert seen.states == {"COMPLETE": 3, "PRUNED": 1, "RUNNING": 1}
    assert (seen.finished, seen.wanted, seen.left.trials) == (4, 20, 15)
    assert seen.spent.wall_s == 40.0 and seen.cost == pytest.approx(110 / 3600 * 2)
    assert [(one.worker, one.seconds) for one in seen.running] == [("machine:7", 10.0)]
    assert [(one.trial, one.reason) for one in seen.failures] == [(3, "Diverged: lower it")]
    assert seen.eta_s == pytest.approx(15 + 15 * 25)  # the mean of four is 25 s, of which the running one has had 10
    assert not seen.over


def test_a_study_with_all_its_trials_is_over(searched: optuna.Study, recipe: Recipe) -> None:
    seen = overview(searched, recipe)
    assert seen.over and seen.eta_s is None
    assert seen.best is not None and seen.best.feasible


def test_nothing_feasible_is_no_best(recipe: Recipe) -> None:
    study = empty()
    study.add_trial(complete(0.4, -2.0, feasible=False))
    seen = overview(study, recipe)
    assert seen.best is None and seen.hypervolume == 0.0
    assert "best: no feasible trial yet" in lines(seen)


def test_an_overview_is_json(searched: optuna.Study, recipe: Recipe) -> None:
    told = json.loads(json.dumps(overview(searched, recipe).as_dict()))
    assert told["finished"] == 20 and len(told["candidates"]) == 20
    assert told["best"]["trial"] == told["candidates"][0]["trial"]
    assert told["importances"][GAIN]


def shown(seen: Overview) -> str:
    out = io.StringIO()
    Console(width=160, file=out).print(overview_view(seen))
    return out.getvalue()


def test_a_status_shows_what_there_is(searched: optuna.Study, recipe: Recipe) -> None:
    study = empty()
    study.add_trials([*searched.get_trials(), ended(TrialState.FAIL, failure="line\nOSError: no room")])
    study.add_trial(ended(TrialState.RUNNING, worker="machine:7"))
    text = shown(overview(study, recipe))
    for part in ("20 of 20 trials finished", "hypervolume", "machine:7", "OSError: no room", "method.rate", "EUR"):
        assert part in text, part


def png(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000


def test_pictures_are_drawn_of_any_study(searched: optuna.Study, tmp_path: Path) -> None:
    searched_with = empty()
    searched_with.add_trials([*searched.get_trials(), ended(TrialState.PRUNED), ended(TrialState.FAIL)])
    assert png(pareto_picture(searched_with, candidates_of(searched_with), tmp_path / "pareto.png"))
    assert png(pareto_picture(empty(), [], tmp_path / "empty.png"))
    assert png(importances_picture(importances(searched), "small", tmp_path / "importances.png"))
