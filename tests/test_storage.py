"""When a trial is given up: its heartbeats are missing to whoever could have heard them, not to a clock alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from tuning.budget import RETRY_KEY
from tuning.errors import BadStorage
from tuning.retries import try_lost_again
from tuning.storage import PatientStorage, StudyStorage, _patient
from tuning.worker import fail_stale

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # that only Optuna's own loop beats


@pytest.fixture
def storage(tmp_path: Path) -> PatientStorage:
    """With a second between heartbeats; late after three, and given up after two more."""
    (tmp_path / "studies" / "one").mkdir(parents=True)
    return replace(StudyStorage.of(tmp_path, "one"), beat_s=1).open(try_lost_again)


def running_trial(storage: PatientStorage) -> tuple[optuna.Study, optuna.Trial]:
    study = optuna.create_study(study_name="one", storage=storage)
    study.enqueue_trial({"x": 0.5})
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    return study, trial


def was_silent_for(storage: PatientStorage, seconds: int) -> None:
    """As after an outage of the database, or where the machine slept."""
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds')"))


def passed(storage: PatientStorage, seconds: float) -> None:
    """So much time, to this process."""
    storage._silent_since = {told: since - seconds for told, since in storage._silent_since.items()}


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def test_a_trial_that_is_heard_again_after_an_outage_is_not_given_up(storage: PatientStorage) -> None:
    study, trial = running_trial(storage)
    storage.record_heartbeat(trial._trial_id)
    was_silent_for(storage, 600)
    assert storage.unheard(study._study_id) == [trial._trial_id]
    fail_stale(study)
    passed(storage, 2.1)
    storage.record_heartbeat(trial._trial_id)
    fail_stale(study)
    assert states(study) == [TrialState.RUNNING]


def test_a_trial_that_stays_silent_is_given_up_and_enqueued_once(storage: PatientStorage) -> None:
    study, trial = running_trial(storage)
    storage.record_heartbeat(trial._trial_id)
    was_silent_for(storage, 600)
    fail_stale(study)
    assert states(study) == [TrialState.RUNNING]
    passed(storage, 1.0)
    fail_stale(study)
    assert states(study) == [TrialState.RUNNING]
    passed(storage, 1.1)
    for _ in range(2):
        fail_stale(study)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[1].user_attrs[RETRY_KEY] == 0


def test_silence_while_the_database_is_away_does_not_count(storage: PatientStorage) -> None:
    study, trial = running_trial(storage)
    storage.record_heartbeat(trial._trial_id)
    was_silent_for(storage, 600)
    fail_stale(study)
    heard, away = storage.get_n_trials, iter([True, False])

    def lost(*asked: object, **how: object) -> int:
        if next(away):
            passed(storage, 2.1)
            raise sqlalchemy.exc.OperationalError("", {}, Exception("the server closed the connection"))
        return heard(*asked[1:], **how)  # type: ignore[arg-type]

    storage._patience_s = 60.0
    assert _patient(lost)(storage, study._study_id) == 1
    fail_stale(study)
    assert states(study) == [TrialState.RUNNING]


def test_a_worker_that_was_lost_before_its_first_heartbeat_is_given_up_in_a_file_too(storage: PatientStorage) -> None:
    study, _ = running_trial(storage)
    fail_stale(study)
    assert states(study) == [TrialState.RUNNING]
    passed(storage, 3.1)
    fail_stale(study)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_that_was_lost_before_its_values_were_stored_keeps_those_that_it_was_enqueued_with(
    storage: PatientStorage,
) -> None:
    study = optuna.create_study(study_name="one", storage=storage)
    study.enqueue_trial({"x": 0.5, "y": 1})
    lost = study.ask()
    lost.suggest_float("x", 0, 1)
    study.tell(lost, state=TrialState.FAIL)
    try_lost_again(study, study.trials[0])
    again = study.ask()
    assert (again.suggest_float("x", 0, 1), again.suggest_int("y", 0, 9)) == (0.5, 1)


def test_a_drawn_trial_without_values_is_not_enqueued(storage: PatientStorage) -> None:
    study = optuna.create_study(study_name="one", storage=storage)
    study.tell(study.ask(), state=TrialState.FAIL)
    try_lost_again(study, study.trials[0])
    assert states(study) == [TrialState.FAIL]


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:///:memory:"])
def test_a_study_that_would_be_gone_with_its_process_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadStorage, match="names none.*sqlite:///FILE"):
        StudyStorage.of(tmp_path, "one", url)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadStorage, match="no folder .*nowhere"):
        StudyStorage.of(tmp_path, "one", f"sqlite:///{tmp_path}/nowhere/optuna.db").open()


def test_a_password_with_a_plain_at_sign_is_refused_before_a_part_of_it_is_told_as_a_host(tmp_path: Path) -> None:
    with pytest.raises(BadStorage, match="%40") as raised:
        StudyStorage.of(tmp_path, "one", "postgresql://me:se@cret@127.0.0.1:1/db")
    assert "cret" not in str(raised.value)
    assert StudyStorage.of(tmp_path, "one", "postgresql://me:se%40cret@127.0.0.1:1/db").is_shared
