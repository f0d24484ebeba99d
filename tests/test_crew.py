"""`graftline tune --workers`: refused before there is a study, or handed to who runs it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from small_studies import small
from test_cli import ended
from test_studies_by_command import RECIPE

from registry.stale_runs import stale_runs
from registry.tracking import PROCESS_TAG, Tracking
from service.commands.crew import Crew, executor_of
from tuning.errors import BadCluster, BadStorage
from tuning.records import RUN_KEY, Records
from tuning.storage import StudyStorage
from tuning.study import Sweep

if TYPE_CHECKING:
    from postgres import Postgres


@pytest.fixture
def sweep(backbone_directory: Path, tmp_path: Path) -> Sweep:
    return Sweep(small(backbone_directory), tmp_path / "home", Tracking.at(tmp_path / "home"), threads=1)


@pytest.mark.parametrize("executor", ["slurm", "k8s"])
def test_a_study_in_a_file_is_not_made_for_workers_on_several_machines(sweep: Sweep, tmp_path: Path, executor: str) -> None:
    (tmp_path / "cluster.toml").write_text('[k8s]\nimage = "i"\n')
    with pytest.raises(BadStorage, match=executor):
        executor_of(Crew(2, executor, tmp_path / "cluster.toml"), sweep)
    assert not sweep.home.exists()


def test_an_executor_that_is_not_there_is_refused_by_name(sweep: Sweep) -> None:
    with pytest.raises(BadCluster, match="local, slurm, k8s, ray, but got 'lsf'"):
        executor_of(Crew(2, "lsf"), sweep)


def test_what_starts_its_workers_itself_has_nothing_to_submit(sweep: Sweep) -> None:
    with pytest.raises(BadCluster, match="--executor local starts its workers itself"):
        executor_of(Crew(2, submit=True), sweep)


def test_workers_that_begin_together_find_the_run_that_who_made_the_study_began(sweep: Sweep) -> None:
    study = sweep.create_for_workers()
    run = study.user_attrs[RUN_KEY]
    assert Records.open(sweep.tracking, sweep.recipe, study, print, sweep.directory).parent == run
    assert sweep.create_for_workers(resume=True).user_attrs[RUN_KEY] == run


def test_a_run_that_waits_for_its_first_worker_is_no_dead_one(sweep: Sweep) -> None:
    study = sweep.create_for_workers()
    run, ended_long_ago = study.user_attrs[RUN_KEY], f"{socket.gethostname()}/{2**22 + 1}@1"
    sweep.tracking.set_tags(run, {PROCESS_TAG: ended_long_ago})
    assert stale_runs(sweep.tracking, 0.0) == ()
    Records.open(sweep.tracking, sweep.recipe, study, print, sweep.directory)
    assert stale_runs(sweep.tracking, 0.0) == ()
    sweep.tracking.set_tags(run, {PROCESS_TAG: ended_long_ago})
    assert [stale.run_id for stale in stale_runs(sweep.tracking, 0.0)] == [run]


@pytest.mark.parametrize("options", [("--executor", "ray"), ("--submit",), ("--workers", "2", "--create-only")])
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    assert ended(("tune", "tiny.toml", "--home", "home", *options), tmp_path, monkeypatch) == 2
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_two_workers_run_a_study_and_its_best_trial_is_told(
    postgres: Postgres,
    home: Path,
    backbone_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = "\n[study]\ntrials = 2\n[study.stop]\ncheckpoints = []\n"
    (tmp_path / "tiny.toml").write_text(RECIPE.format(backbone=backbone_directory) + study)
    url = postgres.database()
    words = ("tune", "tiny.toml", "--home", str(home), "--storage", url, "--workers", "2", "--json")
    assert ended(words, tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["candidates"]) == 2
    assert len(optuna.load_study(study_name="tiny", storage=StudyStorage.of(home, "tiny", url).open()).get_trials()) >= 2
