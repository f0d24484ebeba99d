"""Workers of one study on PostgreSQL: they share its length, and what one of them or the database loses is made up for once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from small_studies import knowing_home, small

from adapters.backbone import Backbone
from registry.tracking import Tracking
from service.commands.worker import worker
from service.preempted import START_AGAIN
from tuning.budget import RESUMED_KEY, RETRY_KEY
from tuning.candidates import DIRECTORY_KEY, brought
from tuning.errors import BadStorage, NoStudy, Preempted, StorageAway, StudyMismatch
from tuning.records import RUN_KEY
from tuning.retries import LOST_KEY, MAX_LOST, try_lost_again, unshared
from tuning.storage import BEAT_S, BOOT_KEY, HOST_KEY, StudyStorage
from tuning.study import Event, Sweep

if TYPE_CHECKING:
    from postgres import Postgres


@pytest.fixture
def sweep(postgres: Postgres, backbone_directory: Path, home: Path) -> Sweep:
    """Of two trials, whose workers are given up after three seconds of silence."""
    storage = replace(StudyStorage.of(home, "small", postgres.database()), beat_s=1)
    return Sweep(small(backbone_directory), home, Tracking.at(home), threads=1, storage=storage)


def finished(study: optuna.Study) -> list[int]:
    return [trial.number for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))]


def trials_of_runs(sweep: Sweep) -> list[str]:
    client = MlflowClient(sweep.tracking.uri)
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    return sorted(run.data.tags["optuna.trial"] for run in runs if "optuna.trial" in run.data.tags)


@pytest.mark.slow
def test_a_worker_needs_only_the_name_and_another_machine_can_publish(
    sweep: Sweep, session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sweep.create_for_workers()
    there = knowing_home(session_backbone, tmp_path_factory.mktemp("there"))
    tracking = Tracking(sweep.tracking.uri, sweep.tracking.artifact_root, there / "releases")
    worker = Sweep.joined("small", there, tracking, sweep.storage_url)
    assert worker.recipe == sweep.recipe
    study = worker.join()
    worker.run(study, lambda event: None)
    assert len(finished(study)) == 2
    events = list[Event]()
    sweep.run(sweep.join(), events.append)  # the length is the study's, and not a worker's
    assert not [event for event in events if event.kind == "start"]
    best = sweep.candidates(study)[0]
    assert best.directory.is_relative_to(there)
    shutil.rmtree(there)
    fetched = brought(best, sweep.home, sweep.tracking)
    assert (fetched.directory / "manifest.json").is_file() and fetched.directory.is_relative_to(sweep.home)


@pytest.mark.slow
def test_a_trial_whose_worker_fell_silent_is_tried_again_and_its_finished_result_is_taken(sweep: Sweep) -> None:
    study = sweep.create()

    class Lost(BaseException):
        """Ends this worker where a kill would: after the child's result, before anyone is told."""

    def lose(event: Event) -> None:
        if event.kind == "measure" and event.share == 1.0:
            time.sleep(0.5)
            raise Lost

    told = study.tell
    study.tell = lambda *_, **__: None  # type: ignore[method-assign, assignment, return-value]
    study.enqueue_trial, enqueue = lambda *_, **__: None, study.enqueue_trial  # type: ignore[method-assign]
    with pytest.raises(Lost):
        sweep.run(study, lose)
    study.tell, study.enqueue_trial = told, enqueue  # type: ignore[method-assign]
    (running,) = study.get_trials(states=(TrialState.RUNNING,))
    deadline = time.monotonic() + 20
    while not (Path(running.user_attrs[DIRECTORY_KEY]) / "result.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)

    other = replace(sweep)
    joined = other.join()
    other.run(joined, lambda event: None)
    trials = joined.trials
    assert trials[running.number].state == TrialState.FAIL
    (retry,) = [trial for trial in trials if trial.user_attrs.get(RETRY_KEY) == running.number]
    assert retry.state == TrialState.COMPLETE and retry.params == running.params
    assert retry.user_attrs[LOST_KEY] == 1 <= MAX_LOST
    assert retry.user_attrs[RESUMED_KEY] is True
    assert retry.user_attrs[DIRECTORY_KEY] == running.user_attrs[DIRECTORY_KEY]
    assert len(finished(joined)) == 2
    assert trials_of_runs(sweep) == sorted(map(str, finished(joined)))


def given_up(sweep: Sweep, number: int) -> None:
    """By another worker, which hears nothing of the one that runs it."""
    study = sweep.join()
    study.tell(number, state=TrialState.FAIL)
    try_lost_again(study, study.trials[number])


@pytest.mark.slow
def test_a_worker_whose_trial_was_given_up_goes_on_and_its_result_is_counted_once(sweep: Sweep) -> None:
    study, gave, told = sweep.create(), list[int](), list[Event]()

    def give_up(event: Event) -> None:
        told.append(event)
        if event.kind == "measure" and event.share == 1.0 and not gave:
            gave.append(event.trial)
            given_up(sweep, event.trial)

    sweep.run(study, give_up)
    trials = sweep.join().trials
    (retry,) = [trial for trial in trials if trial.user_attrs.get(RETRY_KEY) == gave[0]]
    assert trials[gave[0]].state == TrialState.FAIL and retry.state == TrialState.COMPLETE
    assert retry.user_attrs[RESUMED_KEY] is True
    assert len(finished(study)) == 2
    assert trials_of_runs(sweep) == sorted(map(str, finished(study)))
    assert [event.trial for event in told if event.kind == "failed"] == gave


def test_a_trial_whose_earlier_try_still_runs_begins_in_its_own_place(tmp_path: Path) -> None:
    known, own = tmp_path / "3", tmp_path / "7"
    with unshared(None, known) as running:
        assert running == known
        with unshared(known, own) as place:
            assert place == own
    with unshared(known, own) as place:
        assert place == known
    with unshared(tmp_path / "elsewhere", own) as place:
        assert place == own


def test_a_trial_that_was_given_up_is_not_handed_back_too(sweep: Sweep) -> None:
    study, told = sweep.create(), list[Event]()

    def give_up(event: Event) -> None:
        if event.kind == "fit" and not told:
            given_up(sweep, event.trial)
        told.append(event)

    with pytest.raises(Preempted):
        sweep.run(study, give_up, lambda: any(event.kind == "fit" for event in told))
    assert len([trial for trial in study.trials if RETRY_KEY in trial.user_attrs]) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_was_enqueued_twice_runs_once(sweep: Sweep) -> None:
    study = sweep.create()
    lost = study.ask()
    for _ in range(2):
        study.enqueue_trial({"method.learning_rate": 1e-4, "adapter.kind": "lora"}, user_attrs={RETRY_KEY: lost.number})
    study.tell(lost, state=TrialState.FAIL)
    sweep.run(study, lambda event: None)
    twins = [trial for trial in study.trials if RETRY_KEY in trial.user_attrs]
    assert [trial.state for trial in twins][:1] == [TrialState.COMPLETE]
    assert sum(trial.state == TrialState.COMPLETE for trial in twins) == 1


@pytest.mark.slow
def test_a_database_that_is_killed_in_the_middle_of_a_trial_is_waited_for(sweep: Sweep, postgres: Postgres) -> None:
    study, killed = sweep.create(), list[int]()

    def kill(event: Event) -> None:
        if event.kind == "measure" and not killed:
            killed.append(event.trial)
            postgres.kill()
            threading.Timer(1.5, postgres.start).start()

    sweep.run(study, kill)
    again = sweep.join()
    assert killed and len(finished(again)) == 2
    assert not again.get_trials(states=(TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL))
    assert trials_of_runs(sweep) == ["0", "1"]


def test_a_worker_that_is_told_to_end_hands_its_trial_back(sweep: Sweep) -> None:
    study, told = sweep.create(), list[Event]()

    def ended() -> bool:
        return any(event.kind == "fit" for event in told)

    with pytest.raises(Preempted, match="told to end"):
        sweep.run(study, told.append, ended)
    (left,) = study.get_trials(states=(TrialState.FAIL,))
    waiting = [trial for trial in study.get_trials(states=(TrialState.WAITING,)) if RETRY_KEY in trial.user_attrs]
    assert [trial.user_attrs[RETRY_KEY] for trial in waiting] == [left.number]
    assert LOST_KEY not in waiting[0].user_attrs


def test_two_workers_never_propose_by_the_same_seed(sweep: Sweep) -> None:
    sweep.create()
    drawn = set()
    for _ in range(2):
        study = sweep.join()
        study.set_user_attr("seen", len(drawn))
        trial = optuna.create_study(sampler=study.sampler).ask()
        drawn.add(trial.suggest_float("x", 0, 1))
    assert len(drawn) == 2


def test_a_database_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql://me:secret@127.0.0.1:{port}/studies"
    with pytest.raises(StorageAway, match="does not serve it") as raised:
        StudyStorage.of(tmp_path, "small", url).open()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "studies.db", "postgresql+nothing://host/db", "redis://host", "postgresql://host:port/db"]
)
def test_a_url_that_no_sweep_can_use_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadStorage, match="postgresql"):
        StudyStorage.of(tmp_path, "small", url)
    with pytest.raises(BadStorage) as raised:
        StudyStorage.of(tmp_path, "small", url.replace("://", "://me:se:cr@et@"))
    assert "se:cr" not in str(raised.value)


def test_a_study_in_a_file_is_refused_to_another_machine(backbone_directory: Path, home: Path) -> None:
    sweep = Sweep(small(backbone_directory), home, Tracking.at(home), threads=1)
    study = sweep.create()
    assert study.user_attrs[HOST_KEY] == socket.gethostname()
    sweep.join()
    study.set_user_attr(HOST_KEY, "another-machine")
    study.set_user_attr(BOOT_KEY, "another start")
    with pytest.raises(BadStorage, match="'another-machine'.*postgresql"):
        sweep.join()


def test_two_studies_of_one_name_do_not_share_a_folder(sweep: Sweep) -> None:
    in_file = replace(sweep, storage=None)
    in_file.create()
    with pytest.raises(StudyMismatch, match="another name, use another --home, or remove the folder") as raised:
        sweep.create()
    assert "optuna.db" in str(raised.value)
    assert not optuna.study.get_all_study_names(sweep.kept_in.open())
    elsewhere = replace(sweep, home=sweep.home / "elsewhere")
    elsewhere.create()
    with pytest.raises(StudyMismatch, match="another study named 'small'"):
        sweep.join()
    with pytest.raises(StudyMismatch, match="remove the folder"):
        replace(elsewhere, storage=None).create()
    assert not (elsewhere.directory / "optuna.db").exists()
    in_file.join()
    replace(sweep, home=sweep.home / "a third").join()


@pytest.mark.slow
def test_a_worker_that_the_database_refuses_is_not_started_again_and_one_that_waits_is(
    sweep: Sweep, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.create()
    url = sweep.storage_url
    postgres.ask_password("locked", "right")
    postgres.run("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    wrong = {
        url.replace("postgres@", "locked:wrong@"): 'password authentication failed for user "locked"',
        url.replace("postgres@", "locked@"): "no password supplied",
        url.replace("postgres@", "nobody@"): 'role "nobody" does not exist',
        f"{url}_not": '_not" does not exist',
    }
    for asked, words in wrong.items():
        with pytest.raises(BadStorage) as raised:
            worker("small", asked, sweep.home, None)
        assert words in str(raised.value) and "wrong@" not in str(raised.value) and ":wrong" not in str(raised.value)
    with pytest.raises(StorageAway, match="too many connections"):
        Sweep.joined("small", sweep.home, sweep.tracking, url.replace("postgres@", "crowded@"))
    assert worker("small", url.replace("postgres@", "crowded@"), sweep.home, None) == START_AGAIN


def test_study_and_registry_may_not_share_a_database(postgres: Postgres, backbone_directory: Path, tmp_path: Path) -> None:
    url = postgres.database()
    storage = StudyStorage.of(tmp_path, "small", url)
    sweep = Sweep(small(backbone_directory), tmp_path, Tracking.at(tmp_path, url), threads=1, storage=storage)
    with pytest.raises(BadStorage, match="databases of their own"):
        sweep.create()
    assert not optuna.study.get_all_study_names(storage.open())


def test_a_worker_without_a_study_is_told_how_to_make_one(postgres: Postgres, tmp_path: Path) -> None:
    for url in (postgres.database(), None):
        with pytest.raises(NoStudy, match="--create-only"):
            Sweep.joined("small", tmp_path, Tracking.at(tmp_path), url)
    assert not list(tmp_path.iterdir())


def started(sweep: Sweep, log: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys, tuning.storage as s; s.BEAT_S = 1; s.StudyStorage.__dataclass_fields__['beat_s'].default = 1; "
        "s.StudyStorage.__init__.__defaults__ = (1, 600.0); from service.cli import main; main()"
    )
    arguments = ["worker", "--study", "small", "--storage", sweep.storage_url, "--home", str(sweep.home)]
    environment = {**os.environ, "GRAFTLINE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=out, stderr=out)


def said(log: Path, text: str, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert process.poll() is None or text in log.read_text(), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_that_are_killed_or_ended_lose_nothing_and_count_nothing_twice(sweep: Sweep, tmp_path: Path) -> None:
    assert BEAT_S > 1
    longer = replace(sweep, recipe=sweep.recipe.with_values({"study.trials": 6, "method.steps": 30}))
    study = longer.create()
    logs = [tmp_path / f"{name}.log" for name in ("killed", "ended", "other")]
    killed, ended = started(longer, logs[0]), started(longer, logs[1])
    said(logs[0], "fit 25%", killed)
    killed.kill()
    killed.wait()
    said(logs[1], "fit 25%", ended)
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(60) == 75, logs[1].read_text()
    other = started(longer, logs[2])
    assert other.wait(300) == 0, logs[2].read_text()
    assert len(finished(study)) == 6
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert trials_of_runs(longer) == sorted(str(trial.number) for trial in complete)
    assert all(trial.user_attrs[RUN_KEY] for trial in complete)
    # What was interrupted came back with the same values, once each.
    again = [trial for trial in study.trials if RETRY_KEY in trial.user_attrs]
    assert {tuple(trial.params.items()) for trial in again} <= {
        tuple(trial.params.items()) for trial in study.get_trials(states=(TrialState.FAIL,))
    }
    assert sum(trial.user_attrs.get(LOST_KEY, 0) for trial in again) >= 1
