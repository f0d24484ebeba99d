"""The finished trials of a study: in which order they are brought before the gate, and which one is published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.errors import DamagedStudy, NothingToPublish
from tuning.records import RUN_KEY
from tuning.stop_items import is_partial
from tuning.trial import ADAPTER

DIRECTORY_KEY, SCORE_KEY = "directory", "score"  # user attributes of a trial
IN_FULL = "in_full"  # the folder, in a trial's, of what is measured in full after a part was


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
    """The finished trials of a study, best first. One that was read on a part of its items is none: see tuning.stop_winner."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return in_order([found for trial in complete if (found := candidate_of(study, trial))])


def in_order(candidates: list[Candidate]) -> list[Candidate]:
    """Feasible ones first: of those within one standard error of the largest gain, the one that loses least; then the rest.

    Those that are not feasible follow by retention.
    """
    largest = max((c.domain_gain for c in candidates if c.feasible), default=0.0)

    def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
        near = candidate.domain_gain + float(candidate.score["chosen"]["gain_stderr"]) >= largest
        return candidate.feasible, candidate.feasible and near, candidate.retention, candidate.domain_gain

    return sorted(candidates, key=rank, reverse=True)


def stored_candidates(home: Path, name: str) -> list[Candidate]:
    """The finished trials of a study by its name, best first; empty when there is no such study."""
    file = home / "studies" / name / "optuna.db"
    if not file.is_file():
        return []
    storage = f"sqlite:///{file}"
    with readable(file):
        if name not in optuna.study.get_all_study_names(storage):  # a sweep that was refused leaves the file alone
            return []
        study = optuna.load_study(study_name=name, storage=storage)
        return candidates_of(study)


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


def settled_key(number: int) -> str:
    """The study's user attribute with the full score of a trial that was read on a part of its items."""
    return f"{IN_FULL}.{number}"


def candidate_of(study: optuna.Study, trial: FrozenTrial, partial: bool = False) -> Candidate | None:
    """None for a trial that was read on a part of its items, unless those are asked for, and for one that could not be read."""
    attributes, directory = trial.user_attrs, Path(trial.user_attrs[DIRECTORY_KEY])
    score = attributes[SCORE_KEY]
    if is_partial(score) and (full := study.user_attrs.get(settled_key(trial.number))) is not None:
        score, directory = full, directory / IN_FULL
    if not score or (is_partial(score) and not partial):
        return None
    return Candidate(trial.number, directory / ADAPTER, trial.params, score, attributes.get(RUN_KEY))
