"""What is fitted again is fitted as a trial is: with half the micro-batch where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from bounded_children import fits_below, killed, no_room
from scored_studies import score, study_of
from small_studies import small

from registry.tracking import Tracking
from tuning.candidates import REFITTED, removed_key
from tuning.errors import NothingToRefit
from tuning.isolation import ChildDied
from tuning.refit import refitted
from tuning.study import Sweep
from tuning.trial import ADAPTER, Job, Outcome, Report


@pytest.fixture(autouse=True)
def _no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.refit.prepare", lambda domain: None)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return study_of(tmp_path, [(0.5, None)])


@pytest.fixture
def sweep(tmp_path: Path, backbone_directory: Path) -> Sweep:
    return Sweep(small(backbone_directory), tmp_path, Tracking.at(tmp_path), threads=1)


def scored(child: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """With the score that the study has."""

    def isolated(job: Job, report: Report, *asked: object) -> Outcome:
        outcome = child(job, report, *asked)
        return outcome.model_copy(update={"score": score(0.5)}) if outcome.state == "complete" else outcome

    return isolated


@pytest.mark.parametrize("lacking", [no_room, killed])
def test_what_does_not_fit_is_fitted_with_half(sweep: Sweep, study: optuna.Study, lacking: Callable[[], Outcome]) -> None:
    seen: list[int] = []
    done = refitted(sweep, study, 0, scored(fits_below(2048, seen, lacking)))
    assert done.same_scores and done.directory == sweep.home / "studies" / "small" / "trials" / "0" / ADAPTER
    assert seen == [2048, 1024] and study.user_attrs[removed_key(0)] == REFITTED


def test_what_half_does_not_fit_either_stays_removed_with_the_way_out(sweep: Sweep, study: optuna.Study) -> None:
    with pytest.raises(NothingToRefit, match="now it did not come out: .*micro_batch_tokens 2048 and 1024. Lower batch_size"):
        refitted(sweep, study, 0, fits_below(1, [], no_room))
    assert removed_key(0) not in study.user_attrs


def test_a_process_that_died_of_something_else_is_said_to_have(sweep: Sweep, study: optuna.Study) -> None:
    def died() -> Outcome:
        raise ChildDied("exit code 1.")

    seen: list[int] = []
    with pytest.raises(NothingToRefit, match="its process died: exit code 1. The same command goes on"):
        refitted(sweep, study, 0, fits_below(1, seen, died))
    assert seen == [2048]
