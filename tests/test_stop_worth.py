"""A reading is taken while it is expected to save more time than it takes: by a study's own past, and never by a guess."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from tuning.budget import SECONDS_KEY
from tuning.stop_curve import FamilyChange, FitReading, Point
from tuning.stop_judge import StopJudge
from tuning.stop_settings import StopRecipe
from tuning.stop_worth import Past, past_of

EARLY, LATE = 0.33, 0.67


def reading(checkpoint: float, change: float = 0.0, seconds: float = 20.0) -> FitReading:
    point = Point(1.0, 0.1, 0.01, {"kin": FamilyChange(change, change - 0.1, change + 0.1, 0.05)})
    return FitReading(checkpoint, (32, 8), (point,), 1.0, seconds)


def judged(study: optuna.Study, *, change: float = 0.0, spares: bool = False, stop: StopRecipe | None = None) -> None:
    """A trial that is read at 100 s and at 200 s, unless its judge says no, and that ends well after 300 s."""
    trial, now = study.ask(), [0.0]
    judge = StopJudge(study, trial, stop or StopRecipe(), spares, clock=lambda: now[0])
    for checkpoint, at in ((EARLY, 100.0), (LATE, 200.0)):
        now[0] = at
        if judge("due", {"checkpoint": checkpoint}) is None and judge("probe", reading(checkpoint, change).as_dict()):
            trial.set_user_attr(SECONDS_KEY, at)
            study.tell(trial, state=TrialState.PRUNED)
            return
    trial.set_user_attr(SECONDS_KEY, 300.0)
    study.tell(trial, (0.1, 0.0))


def study_of(trials: int, **how: object) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "maximize"])
    for _ in range(trials):
        judged(study, **how)  # type: ignore[arg-type]
    return study


def is_due(study: optuna.Study, checkpoint: float, stop: StopRecipe | None = None) -> bool:
    return StopJudge(study, study.ask(), stop or StopRecipe())("due", {"checkpoint": checkpoint}) is None


def test_what_is_known_of_a_checkpoint_is_what_its_readings_did() -> None:
    study = study_of(3)
    judged(study, change=-9.0)
    assert past_of(study.trials, EARLY) == Past(readings=4, stops=1, reading_s=20.0, rest_s=300 - 100 - 20)
    assert past_of(study.trials, LATE) == Past(readings=3, stops=0, reading_s=20.0, rest_s=100.0)


def test_nothing_is_guessed_before_a_trial_has_ended_well() -> None:
    study = study_of(5, change=-9.0)
    assert past_of(study.trials, EARLY) is None and is_due(study, EARLY)


def test_readings_that_never_end_a_trial_are_given_up_the_later_one_first() -> None:
    study = study_of(20)
    read_at = [trial.user_attrs.get("read_at", {}) for trial in study.trials]
    # A chance of 1 in n + 2 of 190 s is less than the 20 s of a reading from the 9th on, of 100 s from the 4th.
    assert [sum(f"{checkpoint:g}" in one for one in read_at) for checkpoint in (EARLY, LATE)] == [8, 3]
    judge = StopJudge(study, study.ask(), StopRecipe())
    assert "0 of" in (judge("due", {"checkpoint": EARLY}) or "") and not is_due(study, LATE)


def test_readings_that_end_every_third_trial_go_on() -> None:
    study = study_of(0)
    for number in range(30):
        judged(study, change=-9.0 if number % 3 == 1 else 0.0)
    assert all("read_at" in trial.user_attrs for trial in study.trials) and is_due(study, EARLY)


def test_a_trial_that_nothing_stops_says_nothing_of_the_chance() -> None:
    study = study_of(20, spares=True)
    past = past_of(study.trials, EARLY)
    assert past is not None and past.readings == 0 and is_due(study, EARLY)


def test_who_asks_for_all_readings_gets_them() -> None:
    always = StopRecipe(reading="always")
    study = study_of(20, stop=always)
    assert is_due(study, LATE, always) and not is_due(study, LATE)


def test_a_pruner_of_optunas_is_told_of_every_trial() -> None:
    assert StopRecipe(pruner="median").reads_all and not StopRecipe(pruner="wilcoxon").reads_all
