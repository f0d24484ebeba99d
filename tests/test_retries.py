"""A failed trial whose worker was killed before it had enqueued it again is found by who joins, and enqueued once."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tuning.budget import RETRY_KEY
from tuning.retries import FAILURE_KEY, LOST_KEY, TRIES_KEY, Enqueue, enqueue_forgotten, hand_back, try_again
from tuning.worker import Worker


class Killed(BaseException):
    pass


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    return study


def begun(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    return trial


def waiting(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.WAITING,))


def killed_before_it_enqueues(study: optuna.Study, enqueue: Enqueue | None, place: Path) -> None:
    """The worker's own steps, up to the one that enqueues."""
    nothing = (None, study, None, None, place, place, 1, print)
    worker, trial = Worker(*nothing), begun(study)  # type: ignore[arg-type]

    def die(*_: object, **__: object) -> None:
        raise Killed

    study.enqueue_trial, kept = die, study.enqueue_trial  # type: ignore[method-assign, assignment]
    try:
        worker._leave(trial, "its worker was told to end", enqueue)
    except Killed:
        pass
    study.enqueue_trial = kept  # type: ignore[method-assign]
    assert [one.state for one in study.trials] == [TrialState.FAIL]


@pytest.mark.parametrize(("enqueue", "counted"), [(hand_back, None), (try_again, 1)])
def test_a_trial_that_its_worker_left_is_enqueued_once_by_who_joins(
    study: optuna.Study, enqueue: Enqueue, counted: int | None, tmp_path: Path
) -> None:
    killed_before_it_enqueues(study, enqueue, tmp_path)
    for _ in range(2):
        enqueue_forgotten(study)
    (again,) = waiting(study)
    assert again.user_attrs[RETRY_KEY] == 0 and again.user_attrs.get(TRIES_KEY) == counted
    assert again.system_attrs["fixed_params"] == {"x": 0.5}


def test_a_trial_that_was_given_back_for_good_stays_so(study: optuna.Study, tmp_path: Path) -> None:
    killed_before_it_enqueues(study, None, tmp_path)
    enqueue_forgotten(study)
    assert waiting(study) == []


def test_a_trial_that_was_given_up_by_a_worker_that_then_died_is_enqueued_as_a_lost_one(study: optuna.Study) -> None:
    study.tell(begun(study), state=TrialState.FAIL)
    for _ in range(2):
        enqueue_forgotten(study)
    (again,) = waiting(study)
    assert (again.user_attrs[RETRY_KEY], again.user_attrs[LOST_KEY]) == (0, 1)


def test_what_failed_with_a_reason_before_there_was_word_of_it_stays_failed(study: optuna.Study) -> None:
    trial = begun(study)
    trial.set_user_attr(FAILURE_KEY, "died twice")
    study.tell(trial, state=TrialState.FAIL)
    enqueue_forgotten(study)
    assert waiting(study) == []
