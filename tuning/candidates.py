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
from tuning.stop_items import is_partial
from tuning.storage import StudyStorage
from tuning.trial import ADAPTER

DIRECTORY_KEY, SCORE_KEY = "directory", "score"  # user attributes of a trial
IN_FULL = "in_full"  # the folder, and the study's attribute, of a trial that is read in full after a part of it was
REFITTED = "refitted"


def removed_key(trial: int) -> str:
    """The user attribute of a study that says that the weights of this trial were removed (True), or are back to stay."""
    return f"weights_removed/{trial}"


@dataclass(frozen=True)
class Candidate:
    """A finished trial that may be published."""

    trial: int
    directory: Path
    params: dict[str, Any]
    score: dict[str, Any]
    run_id: str | None
    marked_removed: bool = False

    @property
    def removed(self) -> bool:
        """Whether its weights made room for those of better trials; see tuning.kept_weights. Fitted again, they are back."""
        return self.marked_removed and not self.directory.is_dir()

    @property
    def feasible(self) -> bool:
        return bool(self.score["feasible"])

    @property
    def domain_gain(self) -> float:
        return float(self.score["chosen"]["domain_gain"])

    @property
    def retention(self) -> float:
        return float(self.score["retention"])

    @property
    def reaches(self) -> float:
        """The gain and one standard error: a largest gain above it leaves the trial behind."""
        return self.domain_gain + float(self.score["chosen"]["gain_stderr"])


def candidates_of(study: optuna.Study) -> list[Candidate]:
    """The finished trials of a study, best first. One that was read on a part of its items is none: see tuning.stop_winner."""
    return in_order([one for one in all_complete(study) if not is_partial(one.score)])


def all_complete(study: optuna.Study) -> list[Candidate]:
    """With those that were read on a part of their items."""
    told = study.user_attrs  # runs that were logged late, what was read in full after the trial, and weights that were removed
    found = (_candidate(trial, told) for trial in study.get_trials(states=(TrialState.COMPLETE,)))
    return [candidate for candidate in found if candidate.score]


def in_order(candidates: list[Candidate]) -> list[Candidate]:
    """Feasible ones first: of those within one standard error of the largest gain, the one that loses least; then the rest.

    Those that are not feasible follow by retention.
    """
    largest = max((c.domain_gain for c in candidates if c.feasible), default=0.0)

    def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
        near = candidate.reaches >= largest
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


def candidate_to_publish(home: Path, name: str, trial: int | None = None, storage_url: str | None = None) -> Candidate:
    """The study's best trial, which must be feasible, or the named one, which need not be: the gate decides."""
    found, kept_in = stored_candidates(home, name, storage_url), StudyStorage.of(home, name, storage_url)
    if not found:
        raise NothingToPublish(
            f"publish takes a directory with a manifest.json, or a study with a finished trial, but {name!r} is neither. "
            f"Studies are looked for in {kept_in.shown if kept_in.is_shared else home / 'studies'}. Name another database with "
            "--storage."
        )
    if trial is not None:
        named = [candidate for candidate in found if candidate.trial == trial]
        if not named:
            numbers = ", ".join(str(number) for number in sorted(candidate.trial for candidate in found))
            raise NothingToPublish(f"Trial {trial} of the study {name!r} did not finish. Finished: {numbers}.")
        return _with_weights(named[0], kept_in, name)
    best = found[0]
    if not best.feasible:
        family, excess = max(best.score["constraints"].items(), key=lambda item: float(item[1]))
        raise NothingToPublish(
            f"publish takes a trial that kept every protected family, but no trial of {name!r} did: the best, {best.trial}, "
            f"exceeds the margin of {family} by {excess:.1f} margins. Sweep on with --resume and more trials, or publish it as a "
            f"candidate all the same with --trial {best.trial}: the gate decides."
        )
    return _with_weights(best, kept_in, name)


def full_key(number: int) -> str:
    """The study's attribute with what was found when the trial was read in full; its score is empty where that failed."""
    return f"{IN_FULL}:{number}"


def _with_weights(candidate: Candidate, kept_in: StudyStorage, name: str) -> Candidate:
    if candidate.removed and not kept_in.is_shared:  # workers of several machines leave a copy with the run
        raise NothingToPublish(
            f"Only the best adapters of a study stay on disk (study.keep_adapters), but trial {candidate.trial} of {name!r} is "
            f"not among them: its weights were removed. Fit it again with `graftline sweep refit {name} --trial "
            f"{candidate.trial}`."
        )
    return candidate


def _candidate(trial: FrozenTrial, told: Mapping[str, Any]) -> Candidate:
    attributes, removed = trial.user_attrs, told.get(removed_key(trial.number)) is True
    if full := told.get(full_key(trial.number)):
        return Candidate(trial.number, Path(full["directory"]) / ADAPTER, trial.params, full["score"], full["run_id"], removed)
    directory = Path(attributes[DIRECTORY_KEY]) / ADAPTER
    run_id = attributes.get(RUN_KEY) or told.get(run_key(trial.number))
    return Candidate(trial.number, directory, trial.params, attributes[SCORE_KEY], run_id, removed)
