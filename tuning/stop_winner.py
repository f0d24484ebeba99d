"""Trials that were read on a part of their items: the one that would be brought before the gate first is read in full before."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from pydantic import JsonValue

from registry.manifest import read_manifest
from tuning.candidates import IN_FULL, Candidate, all_complete, brought, full_key, in_order
from tuning.errors import NothingToPublish
from tuning.isolation import ChildDied, run_isolated
from tuning.memory import Isolated, run_within_memory_here
from tuning.recipe import Recipe
from tuning.records import Records
from tuning.stop_items import is_partial
from tuning.trial import Job, Outcome


def unsettled(study: optuna.Study) -> Candidate | None:
    """The best trial by all that is known, where only a part of its items was read; None where the best was read in full."""
    ordered = in_order(all_complete(study))
    return ordered[0] if ordered and is_partial(ordered[0].score) else None


@dataclass(frozen=True)
class Settling:
    """What the last worker of a study does before it ends. `directory` is the study's, in this process's home."""

    recipe: Recipe
    study: optuna.Study
    records: Records
    directory: Path
    cache: Path
    threads: int
    note: Callable[[str], None]
    ended: Callable[[], bool]
    isolated: Isolated = run_isolated

    def run(self) -> list[int]:
        """Reads the best trial in full until the best is one that was; the numbers of those that were read.

        One that cannot be read in full is no candidate.
        """
        done = list[int]()
        with (self.directory / "settling.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one home that end together: the second finds all of it done
            while (candidate := unsettled(self.study)) is not None:
                self.note(f"trial {candidate.trial} was read on a part of its items, and is now read on all")
                recipe = self.recipe.with_values(dict(candidate.params))
                directory = self.directory / "trials" / str(candidate.trial) / IN_FULL
                outcome = self.read(recipe, candidate, directory)
                run_id = self.records.trial(candidate.trial, directory, recipe, outcome)
                if outcome.state != "complete":
                    self.note(f"trial {candidate.trial} cannot be read in full, and is no candidate: {outcome.reason}")
                found = {"directory": str(directory), "score": outcome.score, "run_id": run_id}
                self.study.set_user_attr(full_key(candidate.trial), found)
                done.append(candidate.trial)
        return done

    def read(self, recipe: Recipe, candidate: Candidate, directory: Path) -> Outcome:
        """The trial's adapter, as it was fitted, measured as any other; it is kept at the scale that is then chosen.

        Its manifest goes on saying the micro-batch that it was fitted with.
        """
        directory.mkdir(parents=True, exist_ok=True)
        try:
            given = brought(candidate, self.cache.parent, self.records.tracking).directory
            as_fitted = recipe.with_values({"method.micro_batch_tokens": _micro_batch_tokens(given)})
            job = Job(as_fitted, directory, self.cache, self.threads, given=given, keep_given=True)
            stall_timeout_s = recipe.study.stall_timeout_s
            return run_within_memory_here(job, lambda phase, share: None, stall_timeout_s, self.ended, self.isolated)
        except (ChildDied, NothingToPublish) as error:
            return Outcome(state="died", reason=str(error))


def _micro_batch_tokens(adapter: Path) -> JsonValue:
    method = read_manifest(adapter).recipe["method"]
    assert isinstance(method, dict)
    return method["micro_batch_tokens"]
