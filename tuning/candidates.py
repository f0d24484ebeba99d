"""The finished trials of a study: in which order they are brought before the gate, and which one is published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from registry.tracking import Tracking
from tuning.errors import DamagedStudy, NothingToPublish
from tuning.records import RUN_KEY, run_key
from tuning.storage import StudyStorage
from tuning.trial import ADAPTER

DIRECTORY_KEY, SCORE_KEY = "directory", "score"  # user attributes of a trial


@dataclass(frozen=True)
class Candidate:
    """A finished trial that may be published."""

    trial: int
    directory: Path
    params: dict[str, Any]
    score: dict[str, Any]
    run_id: str | None

    @property
    def feasible(self) -> bool:
        return bool(self.score["feasible"])

    @property
    def domain_gain(self) -> float:
        return float(self.score["chosen"]["domain_gain"])

    @property
    def retention(self) -> float:
        return float(self.score["retention"])


def candidates_of(study: optuna.Study) -> list[Candidate]:
    """The finished trials of a study, best first."""
    late = study.user_attrs  # runs that were logged when the store answered again
    return in_order([_candidate(trial, late) for trial in study.get_trials(states=(TrialState.COMPLETE,))])


def in_order(candidates: list[Candidate]) -> list[Candidate]:
    """Feasible ones first: of those within one standard error of the largest gain, the one that loses least; then the rest.

    Those that are not feasible follow by retention.
    """
    largest = max((c.domain_gain for c in candidates if c.feasible), default=0.0)

    def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
        near = candidate.domain_gain + float(candidate.score["chosen"]["gain_stderr"]) >= largest
        return candidate.feasible, candidate.feasible and near, candidate.retention, candidate.domain_gain

    return sorted(candidates, key=rank, reverse=True)


def stored_candidates(home: Path, name: str, storage_url: str | None = None) -> list[Candidate]:
    """The finished trials of a study by its name, best first; empty when there is no such study."""
    storage = StudyStorage.of(home, name, storage_url)
    if storage.file is None:
        opened = storage.open()
        known = name in optuna.study.get_all_study_names(opened)
        return candidates_of(optuna.load_study(study_name=name, storage=opened)) if known else []
    if not storage.file.is_file():
        return []
    with readable(storage.file):
        if name not in optuna.study.get_all_study_names(storage.url):  # a sweep that was refused leaves the file alone
            return []
        return candidates_of(optuna.load_study(study_name=name, storage=storage.url))


def brought(candidate: Candidate, home: Path, tracking: Tracking) -> Candidate:
    """The candidate with its files here: a trial of another machine has left them with its run. NothingToPublish if not."""
    if candidate.directory.is_dir():
        return candidate
    if candidate.run_id is None:
        raise NothingToPublish(
            f"A trial is published with its adapter, but trial {candidate.trial} has left none in {candidate.directory} and none "
            "with an MLflow run. Publish it on the machine that ran it."
        )
    return replace(candidate, directory=tracking.downloaded(candidate.run_id, ADAPTER, home / "cache" / "runs"))


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """What Optuna cannot read of the file is DamagedStudy."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DamagedStudy(
            f"A study is an SQLite database that Optuna wrote, but {file} cannot be read as one ({reason}). "
            f"Restore it from a copy, or move {file.parent} away and sweep again."
        ) from error


def candidate_to_publish(home: Path, name: str, trial: int | None = None) -> Candidate:
    """The study's best trial, which must be feasible, or the named one, which need not be: the gate decides."""
    found = stored_candidates(home, name)
    if not found:
        raise NothingToPublish(
            f"publish takes a directory with a manifest.json, or a study with a finished trial, but {name!r} is neither. "
            f"Studies are in {home / 'studies'}."
        )
    if trial is not None:
        named = [candidate for candidate in found if candidate.trial == trial]
        if not named:
            numbers = ", ".join(str(number) for number in sorted(candidate.trial for candidate in found))
            raise NothingToPublish(f"Trial {trial} of the study {name!r} did not finish. Finished: {numbers}.")
        return named[0]
    best = found[0]
    if not best.feasible:
        family, excess = max(best.score["constraints"].items(), key=lambda item: float(item[1]))
        raise NothingToPublish(
            f"publish takes a trial that kept every protected family, but no trial of {name!r} did: the best, {best.trial}, "
            f"exceeds the margin of {family} by {excess:.1f} margins. Sweep on with --resume and more trials, or publish it as a "
            f"candidate all the same with --trial {best.trial}: the gate decides."
        )
    return best


def _candidate(trial: FrozenTrial, late: Mapping[str, Any]) -> Candidate:
    attributes = trial.user_attrs
    directory = Path(attributes[DIRECTORY_KEY]) / ADAPTER
    run_id = attributes.get(RUN_KEY) or late.get(run_key(trial.number))
    return Candidate(trial.number, directory, trial.params, attributes[SCORE_KEY], run_id)
