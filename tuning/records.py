"""What MLflow keeps of a sweep: a parent run of the study, and in it a child run a trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from registry.errors import RegistryError, RegistryUnreachable
from registry.tracking import RunStatus, Tracking
from tuning.distance import step_of
from tuning.recipe import Recipe
from tuning.stop_curve import FitReading
from tuning.stop_pruners import percent
from tuning.trial import ADAPTER, Outcome
from tuning.waiting import Result, Waiting

RUN_KEY = "mlflow_run_id"
WAITING = "untracked"  # the folder of results that wait for the store
_STATUS: dict[str, RunStatus] = {"complete": "FINISHED", "stopped": "KILLED"}


@dataclass(frozen=True)
class Records:
    """A store that goes away is waited for with a note, what the store alone refuses is one too: the results are on disk."""

    tracking: Tracking
    recipe: Recipe
    study: optuna.Study
    parent: str | None  # None: the store refused the study's run
    note: Callable[[str], None]
    waiting: Waiting
    share_files: bool  # adapters are stored with their runs: whoever publishes one may be on another machine

    @classmethod
    def open(
        cls,
        tracking: Tracking,
        recipe: Recipe,
        study: optuna.Study,
        note: Callable[[str], None],
        directory: Path,
        share_files: bool = False,
    ) -> Records:
        """Starts the study's run, or goes on with the one that it has. RegistryUnreachable before a study has one."""
        known = study.user_attrs.get(RUN_KEY)
        waiting = Waiting(directory / WAITING)
        opened = partial(cls, tracking, recipe, study, note=note, waiting=waiting, share_files=share_files)
        try:
            tracking.create()
            if known is None:
                known = begun(tracking, recipe, study)
            else:
                tracking.reopen_run(known)
        except RegistryUnreachable as error:
            if known is None:
                raise
            note(f"{error} The sweep goes on: results wait in {waiting.folder}.")
        except RegistryError as error:
            note(f"not tracked: {error}")
            if known is None:
                return opened(parent=None)
        return opened(parent=str(known))

    def trial(self, number: int, directory: Path, recipe: Recipe, outcome: Outcome) -> str | None:
        """The id of the trial's run; None when the store refused it, or is away: the result then waits in a file."""
        if self.parent is None:
            return None
        result = Result(number, directory, recipe, outcome)
        try:
            self.log_waiting()
            return self._log(result)
        except RegistryUnreachable as error:
            self.waiting.put(result)
            self.note(f"{error} The result of trial {number} waits in {self.waiting.folder} and is logged later.")
        except RegistryError as error:
            self.note(f"trial {number} is not tracked: {error}")
        return None

    def log_waiting(self) -> None:
        """Logs the results that wait. RegistryUnreachable where the store still does not answer."""

        def late(result: Result) -> None:
            try:
                self.study.set_user_attr(run_key(result.number), self._log(result))
            except RegistryUnreachable:
                raise
            except RegistryError as error:
                self.note(f"trial {result.number} is not tracked: {error}")

        if logged := self.waiting.log(late):
            self.note(f"the store answers again: {logged} results that waited are logged")

    def close(self, tags: Mapping[str, object], table: Mapping[str, object], picture: Path | None, status: RunStatus) -> None:
        """Ends the study's run. It never raises: a sweep that ends has its own last word."""
        if self.parent is None:
            return
        try:
            self.log_waiting()
            self.tracking.set_tags(self.parent, tags)
            self.tracking.log_dict(self.parent, table, "trials.json")
            if picture is not None:
                self.tracking.log_artifact(self.parent, picture)
            self.tracking.end_run(self.parent, status)
        except RegistryError as error:
            self.note(f"the study's run is not closed: {error}")
            if left := len(self.waiting.results()):
                self.note(f"{left} results wait in {self.waiting.folder}: `graftline tune RECIPE --resume` logs them")

    def _log(self, result: Result) -> str:
        tags = {"optuna.study": self.recipe.name, "optuna.trial": str(result.number), "outcome": result.outcome.state}
        run_id = result.run_id
        if run_id is None:
            run_id = self.tracking.start_run(self.recipe.name, f"trial {result.number}", parent=self.parent, tags=tags)
            result.note_run(run_id)
        else:  # its worker was lost after the run was begun: the same result is not logged twice
            self.tracking.set_tags(run_id, {**tags, "mlflow.runName": f"trial {result.number}"})
        self._fill(run_id, result.recipe, result.outcome)
        if self.share_files and result.outcome.state == "complete" and (result.directory / ADAPTER).is_dir():
            self.tracking.log_artifact(run_id, result.directory / ADAPTER, ADAPTER)
        return run_id

    def _fill(self, run_id: str, recipe: Recipe, outcome: Outcome) -> None:
        chosen = recipe.model_dump(mode="json", include={"adapter", "method", "backbone", "domain"})
        self.tracking.log_params(run_id, flat(chosen))
        self.tracking.set_tags(run_id, {"data_digest": outcome.data_digest, "recipe_digest": recipe.digest()})
        for told in outcome.curve:
            chosen_point = FitReading.of(told).chosen
            values_read = {"probe/gain": chosen_point.gain, "probe/retention": chosen_point.retention}
            self.tracking.log_metrics(run_id, values_read, step=percent(float(told["checkpoint"])))
        if outcome.state == "complete":
            for name, values in outcome.fit["numbers"].items():
                for place, value in enumerate(values):
                    self.tracking.log_metrics(run_id, {f"fit/{name}": value}, step=step_of(name, place))
            self.tracking.log_metrics(run_id, trial_metrics(outcome))
        else:
            self.tracking.set_tags(run_id, {"failure": outcome.reason[:5000]})
        self.tracking.log_dict(run_id, outcome.model_dump(mode="json"), "result.json")
        self.tracking.end_run(run_id, _STATUS.get(outcome.state, "FAILED"))


def begun(tracking: Tracking, recipe: Recipe, study: optuna.Study, waits: bool = False) -> str:
    """The study's run, begun where it has none: by who makes it, where workers are to begin together.

    `waits`: a new one is marked SCHEDULED, until a worker reopens it.
    """
    if (known := study.user_attrs.get(RUN_KEY)) is None:
        known = tracking.start_run(recipe.name, f"study {recipe.name}", tags={"optuna.study": study.study_name})
        tracking.log_dict(known, recipe.model_dump(mode="json"), "recipe.json")
        if waits:
            tracking.schedule_run(known)  # before any worker can know of it
        study.set_user_attr(RUN_KEY, known)
    return str(known)


def run_key(number: int) -> str:
    """The study's attribute with the run of a trial that was logged late: a finished trial takes no more attributes."""
    return f"{RUN_KEY}:{number}"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def trial_metrics(outcome: Outcome) -> dict[str, float]:
    score, chosen = outcome.score, outcome.score["chosen"]
    return {
        "domain/gain": chosen["domain_gain"],
        "domain/accuracy": chosen["domain_accuracy"],
        "retention/mean_capped": score["retention"],
        "scale": chosen["scale"],
        "kl/forward": score["forward_kl"],
        "feasible": float(score["feasible"]),
        "memory/peak_mib": outcome.peak_memory_mib,
        **{f"fit/{name}": outcome.fit[name] for name in ("tokens_per_s", "num_tokens", "num_generated")},
        **({"fit/micro_batch_tokens": float(outcome.micro_batch_tokens[-1])} if outcome.micro_batch_tokens else {}),
        **{f"fit/{name}": value for name, value in outcome.fit["counts"].items()},
        **{f"retention/chain/{family}": value for family, value in chosen["chain_changes"].items()},
        **{f"retention/written/{family}": value for family, value in score["generated_changes"].items()},
        **{f"constraint/{family}": value for family, value in score["constraints"].items()},
        **{f"seconds/{phase}": value for phase, value in outcome.seconds.items()},
    }
