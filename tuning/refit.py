"""Fits a trial of a study again, where its weights were removed: the same values, into the same directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from tuning.candidates import REFITTED, Candidate, candidates_of, removed_key
from tuning.errors import NothingToRefit
from tuning.isolation import ChildDied, prepare, run_isolated
from tuning.memory import Isolated, run_within_memory_here
from tuning.space import defaults
from tuning.study import Sweep
from tuning.trial import ADAPTER, Job


@dataclass(frozen=True)
class Refit:
    directory: Path  # of the adapter
    same_scores: bool  # as the study has them


def refitted(sweep: Sweep, study: optuna.Study, trial: int, isolated: Isolated = run_isolated) -> Refit:
    """In a child, as a trial, with half the micro-batch where memory runs out; they then stay.

    NothingToRefit for one that did not finish, whose weights are there, or which does not come out again.
    """
    sweep.folder.refuse_to_other(study)
    candidate = _finished(study, trial)
    if candidate.directory.is_dir():
        raise NothingToRefit(
            f"Fitted again is what has no weights, but those of trial {trial} are in {candidate.directory}. Publish it as it is: "
            f"graftline publish {study.study_name} --trial {trial}."
        )
    recipe = sweep.recipe.with_values(dict(candidate.params))
    there = candidate.directory.parent
    directory = there if there.is_dir() else sweep.directory / "trials" / str(trial)  # it ran on another machine
    prepare(recipe.domain)
    job = Job(recipe, directory, sweep.home / "cache", sweep.threads, reference=candidate.params == defaults(sweep.recipe))
    try:
        outcome = run_within_memory_here(job, lambda phase, share: None, sweep.recipe.study.stall_timeout_s, isolated=isolated)
    except ChildDied as died:
        raise NothingToRefit(
            f"Trial {trial} was fitted before, but now its process died: {died} The same command goes on at its checkpoint."
        ) from died
    if outcome.state != "complete":
        raise NothingToRefit(f"Trial {trial} was fitted before, but now it did not come out: {outcome.reason}")
    study.set_user_attr(removed_key(trial), REFITTED)
    again = replace(candidate, score=outcome.score)
    same = (again.domain_gain, again.retention) == (candidate.domain_gain, candidate.retention)
    return Refit(directory / ADAPTER, same)


def _finished(study: optuna.Study, trial: int) -> Candidate:
    for candidate in candidates_of(study):
        if candidate.trial == trial:
            return candidate
    raise NothingToRefit(
        f"Fitted again is a trial that finished, but trial {trial} of {study.study_name!r} did not. `graftline sweep status "
        f"{study.study_name}` lists those that did."
    )
