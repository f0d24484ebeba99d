"""What the parent of a trial does with its readings, in studies of both modes."""

from __future__ import annotations

from io import StringIO

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from service.sweep_view import LinesView, TableView
from tuning.recipe import Recipe
from tuning.stop_curve import CURVE_KEY, FamilyChange, FitReading, Point, curve_of
from tuning.stop_judge import STOPPED, StopJudge
from tuning.stop_pruners import pruner_of
from tuning.stop_settings import Pruner, StopRecipe
from tuning.study import Event

STOP = StopRecipe()


def reading(gain: float, change: float, checkpoint: float = 0.33) -> FitReading:
    point = Point(1.0, gain, 0.01, {"kin": FamilyChange(change, change - 0.1, change + 0.1, 0.05)})
    return FitReading(checkpoint, (32, 8), (point,), 1.0, 1.0)


def pareto() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "maximize"])


def constrained(pruner: Pruner, trials: int = 0) -> tuple[optuna.Study, StopRecipe]:
    """With so many finished trials that gained 0.3 all along."""
    settings = StopRecipe(pruner=pruner, rules=())
    study = optuna.create_study(study_name="small", direction="maximize", pruner=pruner_of(settings))
    for _ in range(trials):
        trial = study.ask()
        judge = StopJudge(study, trial, settings)
        judge("probe", reading(0.3, 0.0).as_dict())
        judge("probe", reading(0.3, 0.0, 0.67).as_dict())
        study.tell(trial, 0.3)
    return study, settings


def ended(study: optuna.Study, gain: float, feasible: bool = True) -> None:
    trial = study.ask()
    StopJudge(study, trial, STOP, spares=True)("probe", reading(gain, -0.1).as_dict())
    trial.set_user_attr("score", {"feasible": feasible})
    study.tell(trial, (gain, -0.1))


def test_the_curve_is_kept_with_the_trial_whatever_becomes_of_it() -> None:
    study = pareto()
    trial, heard = study.ask(), list[FitReading]()
    judge = StopJudge(study, trial, STOP, on_reading=heard.append)
    found = [reading(0.1, -0.1), reading(0.2, -9.0, 0.67)]
    assert judge("probe", found[0].as_dict()) is None
    assert "floor" in (judge("probe", found[1].as_dict()) or "")
    study.tell(trial, state=TrialState.PRUNED)
    assert curve_of(study.trials[0].user_attrs) == found == heard


def test_what_is_below_the_floor_is_far_from_feasible_to_the_sampler() -> None:
    study = pareto()
    trial = study.ask()
    assert StopJudge(study, trial, STOP)("probe", reading(0.1, -5.0).as_dict())
    study.tell(trial, state=TrialState.PRUNED)
    assert study.trials[0].constraints == {"kin": 4.0, STOPPED: 1.0}


def test_a_trial_is_compared_with_those_that_run_and_those_that_ended_well() -> None:
    study = pareto()
    ended(study, 0.3)
    running = [study.ask() for _ in range(2)]
    for trial in running:
        StopJudge(study, trial, STOP, spares=True)("probe", reading(0.3, -0.1).as_dict())
    assert "dominated" in (StopJudge(study, study.ask(), STOP)("probe", reading(0.0, -0.6).as_dict()) or "")
    for trial in running:
        study.tell(trial, state=TrialState.PRUNED)
    assert StopJudge(study, study.ask(), STOP)("probe", reading(0.0, -0.6).as_dict()) is None


def test_a_trial_that_ended_badly_is_no_measure_for_others() -> None:
    for feasible, goes_on in ((True, False), (False, True)):
        study = pareto()
        for _ in range(3):
            ended(study, 0.3, feasible)
        assert (StopJudge(study, study.ask(), STOP)("probe", reading(0.0, -0.6).as_dict()) is None) is goes_on


def test_a_judge_that_spares_hears_all_and_stops_nothing() -> None:
    study = pareto()
    trial = study.ask()
    assert StopJudge(study, trial, STOP, spares=True)("probe", reading(0.1, -50.0).as_dict()) is None
    study.tell(trial, (0.1, -50.0))
    assert study.trials[0].constraints == {} and CURVE_KEY in study.trials[0].user_attrs


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_pruner_of_optunas_ends_a_poor_trial_and_no_good_one(pruner: Pruner) -> None:
    study, settings = constrained(pruner, trials=8)
    poor, good = study.ask(), study.ask()
    told = [reading(gain, 0.0, share).as_dict() for gain in (0.0, 0.4) for share in (0.33, 0.67)]
    judge = StopJudge(study, poor, settings)
    assert f"{pruner}: a gain of +0.000 after" in (judge("probe", told[0]) or judge("probe", told[1]) or "")
    judge = StopJudge(study, good, settings)
    assert judge("probe", told[2]) is None and judge("probe", told[3]) is None


def test_without_a_pruner_a_poor_trial_goes_on() -> None:
    study, settings = constrained("none", trials=8)
    assert StopJudge(study, study.ask(), settings)("probe", reading(0.0, 0.0).as_dict()) is None


def test_wilcoxon_compares_item_by_item_with_the_best_trial() -> None:
    study, settings = constrained("wilcoxon")
    best = study.ask()
    assert StopJudge(study, best, settings)("items", {"changes": {n: 1.0 if n % 2 else 0.0 for n in range(96)}}) is None
    study.tell(best, 0.5)
    worse, alike = study.ask(), study.ask()
    found = StopJudge(study, worse, settings)("items", {"changes": {n: 0.0 for n in range(24)}})
    assert found is not None and found.startswith("wilcoxon: item by item")
    assert StopJudge(study, alike, settings)("items", {"changes": {n: 1.0 if n % 2 else 0.0 for n in range(24)}}) is None


def test_a_reading_is_a_line_of_the_sweep_and_stands_in_its_table_until_the_trial_has_a_score() -> None:
    recipe, found = Recipe(name="x", domain="icd10"), reading(0.1, -0.2)
    event, lines, table = Event("probe", 3, 0.33, str(found), found.told), StringIO(), StringIO()
    LinesView(recipe, lines).on_event(event)
    assert "trial 3: probe after 33% of the fit: gain +0.100 at scale 1" in lines.getvalue()
    view = TableView(recipe, Console(file=table, width=140))
    view.on_event(event)
    Console(file=table, width=140).print(view._table())
    assert "probe 33%" in table.getvalue() and "~+0.100" in table.getvalue() and "~-0.20" in table.getvalue()
