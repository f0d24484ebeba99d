"""A result has one run, however often the store went away while it was logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from small_studies import small
from told_studies import empty

from registry.errors import RegistryUnreachable
from registry.tracking import Tracking
from tuning.records import Records
from tuning.trial import Outcome
from tuning.waiting import Result, Waiting

State = Literal["complete", "stopped", "failed", "died", "refused"]


@dataclass(frozen=True)
class Store(Tracking):
    """Takes runs, and goes away before `away` of them are ended."""

    runs: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    away: list[bool] = field(default_factory=list)

    def start_run(self, experiment: str, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        self.runs.append(name)
        return f"run {len(self.runs)}"

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        pass

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        pass

    def log_dict(self, run_id: str, value: Mapping[str, object], file: str) -> None:
        if self.away and self.away.pop():
            raise RegistryUnreachable("The store is away.")

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        self.ended.append(run_id)


def records(home: Path, store: Store) -> Records:
    recipe = small(home / "backbone")
    return Records(store, recipe, empty(), "parent", lambda text: None, Waiting(home / "untracked"), share_files=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts", tmp_path / "releases")


@pytest.mark.parametrize("state", ["stopped", "failed", "died"])
def test_a_result_whose_run_was_begun_when_the_store_went_away_is_logged_into_that_run(
    tmp_path: Path, store: Store, state: State
) -> None:
    store.away.append(True)
    logs, directory = records(tmp_path, store), tmp_path / "trial"
    directory.mkdir()
    assert logs.trial(3, directory, logs.recipe, Outcome(state=state, reason="why")) is None
    logs.log_waiting()
    assert (store.runs, store.ended) == (["trial 3"], ["run 1"])
    assert logs.study.user_attrs["mlflow_run_id:3"] == "run 1"


def test_what_a_later_trial_comes_to_in_the_same_directory_is_another_run(tmp_path: Path, store: Store) -> None:
    logs = records(tmp_path, store)
    for number in (3, 4):
        assert logs.trial(number, tmp_path, logs.recipe, Outcome(state="died", reason="why")) == f"run {len(store.runs)}"
    assert logs.trial(5, tmp_path, logs.recipe, Outcome(state="failed", reason="why")) == "run 3"
    assert store.runs == ["trial 3", "trial 4", "trial 5"]


@pytest.mark.parametrize(("state", "same"), [("complete", True), ("failed", True), ("stopped", False), ("died", False)])
def test_a_result_that_a_later_trial_takes_over_keeps_its_run(tmp_path: Path, state: State, same: bool) -> None:
    recipe = small(tmp_path / "backbone")
    earlier, later = (Result(number, tmp_path, recipe, Outcome(state=state)) for number in (3, 7))
    earlier.note_run("abc")
    assert (later.run_id, earlier.run_id) == ("abc" if same else None, "abc")
