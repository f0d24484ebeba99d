"""What MLflow keeps of a sweep: a parent run of the study, and in it a child run a trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from registry.errors import RegistryError, RegistryUnreachable
from registry.tracking import RunStatus, Tracking
from tuning.distance import step_of
from tuning.recipe import Recipe
from tuning.trial import Outcome

RUN_KEY = "mlflow_run_id"
_STATUS: dict[str, RunStatus] = {"complete": "FINISHED"}


@dataclass(frozen=True)
class Records:
    """A store that is away is an error; what the store alone refuses is a note, since the results are on disk too."""

    tracking: Tracking
    recipe: Recipe
    parent: str | None  # None: the store refused the study's run
    note: Callable[[str], None]

    @classmethod
    def open(cls, tracking: Tracking, recipe: Recipe, study: optuna.Study, note: Callable[[str], None]) -> Records:
        """Starts the study's run, or goes on with the one that it has."""
        known = study.user_attrs.get(RUN_KEY)
        try:
            tracking.create()
            if known is not None:
                tracking.reopen_run(known)
                return cls(tracking, recipe, str(known), note)
            run_id = tracking.start_run(recipe.name, f"study {recipe.name}", tags={"optuna.study": study.study_name})
            tracking.log_dict(run_id, recipe.model_dump(mode="json"), "recipe.json")
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            note(f"not tracked: {error}")
            return cls(tracking, recipe, None, note)
        study.set_user_attr(RUN_KEY, run_id)
        return cls(tracking, recipe, run_id, note)

    def trial(self, number: int, recipe: Recipe, outcome: Outcome) -> str | None:
        """The id of the trial's run; None when the store refused it."""
        if self.parent is None:
            return None
        tags = {"optuna.study": self.recipe.name, "optuna.trial": str(number), "outcome": outcome.state}
        try:
            run_id = self.tracking.start_run(self.recipe.name, f"trial {number}", parent=self.parent, tags=tags)
            self._fill(run_id, recipe, outcome)
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            self.note(f"trial {number} is not tracked: {error}")
            return None
        return run_id

    def close(self, tags: Mapping[str, object], table: Mapping[str, object], picture: Path | None, status: RunStatus) -> None:
        """Ends the study's run. It never raises: a sweep that ends has its own last word."""
        if self.parent is None:
            return
        try:
            self.tracking.set_tags(self.parent, tags)
            self.tracking.log_dict(self.parent, table, "trials.json")
            if picture is not None:
                self.tracking.log_artifact(self.parent, picture)
            self.tracking.end_run(self.parent, status)
        except RegistryError as error:
            self.note(f"the study's run is not closed: {error}")

    def _fill(self, run_id: str, recipe: Recipe, outcome: Outcome) -> None:
        chosen = recipe.model_dump(mode="json", include={"adapter", "method", "backbone", "domain"})
        self.tracking.log_params(run_id, flat(chosen))
        self.tracking.set_tags(run_id, {"data_digest": outcome.data_digest, "recipe_digest": recipe.digest()})
        if outcome.state == "complete":
            for name, values in outcome.fit["numbers"].items():
                for place, value in enumerate(values):
                    self.tracking.log_metrics(run_id, {f"fit/{name}": value}, step=step_of(name, place))
            self.tracking.log_metrics(run_id, trial_metrics(outcome))
        else:
            self.tracking.set_tags(run_id, {"failure": outcome.reason[:5000]})
        self.tracking.log_dict(run_id, outcome.model_dump(mode="json"), "result.json")
        self.tracking.end_run(run_id, _STATUS.get(outcome.state, "FAILED"))


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
