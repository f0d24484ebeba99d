"""Real workers, started by executors that wait for them, find a study on PostgreSQL complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import small

from registry.tracking import Tracking
from tuning.executors import EXECUTORS
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.watch import watch
from tuning.storage import StudyStorage
from tuning.study import Sweep

if TYPE_CHECKING:
    from postgres import Postgres

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture
def sweep(postgres: Postgres, backbone_directory: Path, home: Path) -> Sweep:
    storage = StudyStorage.of(home, "small", postgres.database())
    return Sweep(small(backbone_directory), home, Tracking.at(home), threads=1, storage=storage)


@pytest.fixture
def _ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # with its usual 15 a busy machine would let the workers wait for ever
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    yield
    assert not ray.is_initialized()


def require_complete(sweep: Sweep, study: optuna.Study) -> None:
    trials = study.get_trials()
    assert [trial.state for trial in trials if trial.state != TrialState.FAIL] == [TrialState.COMPLETE] * 2
    runs = {candidate.run_id for candidate in sweep.candidates(study)}
    assert len(runs) == 2 and None not in runs


def run_by(name: str, sweep: Sweep, say: Callable[[str], None], **values: object) -> int:
    command = WorkerCommand("small", sweep.storage_url, sweep.home, sweep.tracking.uri)
    return watch(EXECUTORS[name](Launch(command, sweep.directory), values), 2, say)


def test_two_local_workers_complete_a_study(sweep: Sweep) -> None:
    study, told = sweep.create(), list[str]()
    assert run_by("local", sweep, told.append, gpus=()) == 0, (told, logs(sweep))
    require_complete(sweep, study)
    assert any("trial 0: start" in log for log in logs(sweep))


def test_two_workers_on_ray_complete_a_study(sweep: Sweep, _ray_of_its_own: None) -> None:
    study, told = sweep.create(), list[str]()
    assert run_by("ray", sweep, told.append, address="local") == 0, told
    require_complete(sweep, study)


def logs(sweep: Sweep) -> list[str]:
    return [log.read_text() for log in sorted((sweep.directory / "logs").iterdir())]
