"""`graftline sweep`: a study is looked at, paused, extended, stopped and refitted from outside."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from small_studies import knowing_home, small
from stores import store_at
from told_studies import complete, ended
from typer.testing import CliRunner

from adapters.backbone import Backbone
from registry.tracking import Tracking
from service.cli import app
from service.commands.tune import Overrides
from service.elsewhere import found_by
from tuning.asked import ask, limits, wish
from tuning.candidates import candidates_of
from tuning.errors import BadStorage, NoStudy, NothingToExtend, NothingToRefit
from tuning.kept_weights import remove_unneeded
from tuning.refit import refitted
from tuning.standing import Standing
from tuning.storage import BOOT_KEY, HOST_KEY, StudyStorage
from tuning.study import Sweep
from tuning.worker import Event, _asked, finished

if TYPE_CHECKING:
    from postgres import Postgres


@pytest.fixture(scope="module")
def made(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Once: Optuna makes the tables of a file by dozens of migrations."""
    home = tmp_path_factory.mktemp("made")
    sweep = Sweep(small(backbone_directory, **{"study.trials": 4}), home, store_at(home), threads=1)
    sweep.create()
    return sweep


@pytest.fixture
def sweep(made: Sweep, tmp_path: Path) -> Sweep:
    """With no trial yet."""
    shutil.copytree(made.home, tmp_path, dirs_exist_ok=True)
    return replace(made, home=tmp_path, tracking=Tracking.at(tmp_path))


@pytest.fixture
def study(sweep: Sweep) -> optuna.Study:
    """With two trials that nothing was fitted for."""
    study = Standing.of(sweep).study
    study.add_trials([complete(0.2, -0.2, seconds=10.0), ended(TrialState.PRUNED, failure="Diverged: lower it", seconds=5.0)])
    return study


def told(home: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["sweep", *arguments, "--home", str(home)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_status_tells_a_script_what_there_is(study: optuna.Study, tmp_path: Path) -> None:
    seen = json.loads(told(tmp_path, "status", "small", "--json"))
    assert (seen["study"], seen["asked"], seen["finished"], seen["wanted"], seen["over"]) == ("small", "run", 2, 4, False)
    assert seen["failures"] == [{"trial": 2, "state": "PRUNED", "reason": "Diverged: lower it"}]
    assert seen["best"]["trial"] == 1 and seen["no_importances"]


def test_a_status_draws_the_pictures_where_it_is_told_to(study: optuna.Study, tmp_path: Path) -> None:
    text = told(tmp_path, "status", "small", "--pictures", str(tmp_path / "drawn"))
    assert (tmp_path / "drawn" / "pareto.png").is_file() and "2 of 4 trials finished" in text
    assert not (tmp_path / "drawn" / "importances.png").exists()


def test_watching_ends_with_the_study(study: optuna.Study, tmp_path: Path) -> None:
    study.add_trials([complete(0.1, -0.2), complete(0.1, -0.3)])
    assert "is over" in told(tmp_path, "status", "small", "--watch")


def test_a_study_that_is_over_without_a_feasible_trial_is_exit_code_1(sweep: Sweep, tmp_path: Path) -> None:
    Standing.of(sweep).study.add_trials([complete(0.3, -2.0, feasible=False) for _ in range(4)])
    told(tmp_path, "status", "small", code=1)


def test_workers_are_told_through_the_study(study: optuna.Study, tmp_path: Path) -> None:
    for command, what in (("pause", "pause"), ("resume", "run"), ("stop", "stop")):
        assert json.loads(told(tmp_path, command, "small", "--json"))["asked"] == what
        assert wish(study) == what
    assert "graftline tune RECIPE --resume" in told(tmp_path, "stop", "small")


def test_an_extension_is_told(study: optuna.Study, tmp_path: Path) -> None:
    assert "6 finished trials" in told(tmp_path, "extend", "small", "--trials", "6")
    assert json.loads(told(tmp_path, "status", "small", "--json"))["left"]["trials"] == 4


def test_an_extension_is_taken_back_by_who_names_the_limit_again(study: optuna.Study, sweep: Sweep, tmp_path: Path) -> None:
    told(tmp_path, "extend", "small", "--trials", "6")
    assert limits(sweep.create(resume=True), sweep.recipe).trials == 6
    assert limits(sweep.create(resume=True, instead=("max_cost",)), sweep.recipe).trials == 6
    assert Overrides(trials=4).limits == ("trials",)
    assert limits(sweep.create(resume=True, instead=("trials",)), sweep.recipe).trials == 4
    with pytest.raises(NothingToExtend, match="--resume --trials 3` takes an extension back"):
        Standing.of(sweep).extend(3, None, None)


def test_a_study_in_a_file_is_adopted_by_a_machine_with_another_name(
    study: optuna.Study, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert socket.gethostname() in told(tmp_path, "adopt", "small")
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    sweep.join()  # a container of the same machine: its kernel runs on
    study.set_user_attr(HOST_KEY, "before")
    study.set_user_attr(BOOT_KEY, "another start")
    with pytest.raises(BadStorage, match="'before' and this is 'renamed'.*graftline sweep adopt small"):
        sweep.join()
    told(tmp_path, "adopt", "small")
    assert sweep.join().user_attrs[HOST_KEY] == "renamed"


def test_a_study_is_not_adopted_while_another_machine_is_heard(study: optuna.Study, sweep: Sweep) -> None:
    found = Standing.of(sweep)
    trial = _asked(found.study)
    found.adopt()  # no worker ever said that it runs
    found.storage.record_heartbeat(trial._trial_id)
    with pytest.raises(BadStorage, match="1 trials of the study 'small' run on"):
        found.adopt()
    with found.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-600 seconds')"))
    found.adopt()


def test_what_is_next_names_the_home_that_was_given(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f" --home {tmp_path}" in found_by(sweep) and "--storage" not in found_by(sweep)
    monkeypatch.setenv("GRAFTLINE_HOME", str(tmp_path))
    assert found_by(sweep) == ""
    served = replace(sweep, tracking=Tracking.at(tmp_path, "http://user:secret@127.0.0.1:1"))
    assert "--tracking-uri 'http://user:" in found_by(served) and "secret" not in found_by(served)


def test_a_study_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoStudy, match="none that is called 'nowhere'"):
        CliRunner().invoke(app, ["sweep", "status", "nowhere", "--home", str(tmp_path)], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_a_stopped_study_takes_no_trial_until_it_is_resumed(study: optuna.Study, sweep: Sweep) -> None:
    ask(study, "stop")
    notes: list[Event] = []
    sweep.run(study, notes.append)
    assert len(finished(study)) == 2 and any("--resume lets it go on" in note.text for note in notes)
    assert wish(sweep.create(resume=True)) == "run"


def test_a_worker_waits_while_the_study_is_paused(study: optuna.Study, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.worker._POLL_S", 0.05)
    ask(study, "pause")
    notes: list[Event] = []
    worker = threading.Thread(target=sweep.run, args=(study, notes.append))
    worker.start()
    try:
        while not any("paused" in note.text for note in notes):
            time.sleep(0.02)
        time.sleep(0.3)
        assert len(finished(study)) == 2 and worker.is_alive()
    finally:
        ask(study, "stop")
        worker.join(60)
    assert not worker.is_alive() and sum("paused" in note.text for note in notes) == 1


def test_a_budget_that_was_used_up_ends_every_worker(study: optuna.Study, sweep: Sweep) -> None:
    shorter = replace(sweep, recipe=sweep.recipe.with_values({"study.max_cost": 0.01, "study.price_per_hour": 3.6}))
    notes: list[Event] = []
    shorter.run(study, notes.append)
    assert [note.text for note in notes if "used up" in note.text] == [
        "budget of 0.01 is used up by 2 trials; more: graftline sweep extend small"
    ]
    assert len(finished(study)) == 2


@pytest.fixture(scope="module")
def swept(
    backbone_directory: Path, session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Sweep, optuna.Study]]:
    """A real sweep of four trials that keeps one adapter, and the recipe's own."""
    home = knowing_home(session_backbone, tmp_path_factory.mktemp("home"))
    values = {"study.trials": 4, "study.keep_adapters": 1, "gate.candidates": 1}
    sweep = Sweep(small(backbone_directory, **values), home, store_at(home), threads=1)
    study = sweep.create()
    sweep.run(study, lambda event: None)
    yield sweep, study


@pytest.mark.slow
def test_a_sweep_leaves_the_weights_of_the_best_and_of_the_recipe_itself(swept: tuple[Sweep, optuna.Study]) -> None:
    sweep, study = swept
    kept = {int(place.parent.name) for place in (sweep.directory / "trials").glob("*/adapter")}
    assert kept == {0, candidates_of(study)[0].trial}
    assert len(json.loads((sweep.directory / "trials.json").read_text())["trials"]) == 4
    assert all(trial.user_attrs["worker"] and trial.user_attrs["began"] for trial in study.trials)


@pytest.mark.slow
def test_a_trial_is_fitted_again_with_the_same_scores_and_then_stays(swept: tuple[Sweep, optuna.Study]) -> None:
    sweep, study = swept
    gone = next(candidate for candidate in candidates_of(study) if candidate.removed)
    done = refitted(sweep, study, gone.trial)
    assert done.same_scores and done.directory == gone.directory and (gone.directory / "manifest.json").is_file()
    assert remove_unneeded(study, sweep.recipe, over=True) == []
    with pytest.raises(NothingToRefit, match="Publish it as it is"):
        refitted(sweep, study, gone.trial)
    with pytest.raises(NothingToRefit, match="trial 77 of 'small' did not"):
        refitted(sweep, study, 77)


@pytest.mark.slow
def test_two_machines_see_one_wish_and_one_length(
    postgres: Postgres, sweep: Sweep, tmp_path: Path, backbone_directory: Path
) -> None:
    url = postgres.database()
    shared = replace(sweep, home=tmp_path / "shared", storage=StudyStorage.of(tmp_path, "small", url))
    study = shared.create()
    elsewhere = tmp_path / "elsewhere"
    told(elsewhere, "pause", "small", "--storage", url)
    told(elsewhere, "extend", "small", "--trials", "9", "--storage", url)
    assert wish(study) == "pause"
    running = _asked(study)
    seen = Standing.of(shared).overview()
    assert (seen.asked, seen.wanted, seen.left.trials) == ("pause", 9, 8)
    assert [(one.trial, one.alive) for one in seen.running] == [(running.number, True)]
