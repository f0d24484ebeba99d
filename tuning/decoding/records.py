"""What MLflow keeps of a policy search: a child run a trial, below the run that fitted the release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from registry.errors import RegistryError, RegistryUnreachable
from registry.release import UNTRACKED
from registry.tracking import RunStatus, Tracking
from tuning.decoding.choice import Change, PolicyScore
from tuning.space import Value

PARENT_KEY = "mlflow_parent_run_id"


@dataclass(frozen=True)
class PolicyRecords:
    """A store that is away is an error; what the store alone refuses is a note, since the study is on disk too."""

    tracking: Tracking
    parent: str | None  # None: the store refused one
    study: str
    note: Callable[[str], None]
    is_own: bool = False  # the parent was made for the search

    @classmethod
    def open(
        cls, tracking: Tracking, release_run: str | None, known: str | None, study: str, subject: str, note: Callable[[str], None]
    ) -> PolicyRecords:
        """Below the release's own run; a release without one gets a run for the search, the `known` one where there is one."""
        try:
            parent = release_run or known or tracking.start_run(UNTRACKED, f"decoding of {subject}", tags={"release": subject})
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            note(f"not tracked: {error}")
            parent = None
        return cls(tracking, parent, study, note, is_own=release_run is None)

    def begin(self, number: int, known: str | None = None) -> str | None:
        """The trial's run: the `known` one of the same values, which a kill cut off, or a new one."""
        if self.parent is None:
            return None
        tags = {"optuna.study": self.study, "optuna.trial": str(number)}
        try:
            if known is not None:
                self.tracking.reopen_run(known)
                self.tracking.set_tags(known, tags)
                return known
            return self.tracking.start_child(self.parent, f"decoding trial {number}", tags=tags)
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            self.note(f"trial {number} is not tracked: {error}")
            return None

    def complete(self, run_id: str | None, values: Mapping[str, Value], policy: Mapping[str, object], score: PolicyScore) -> None:
        def fill(run: str) -> None:
            self.tracking.log_params(run, values)
            self.tracking.log_metrics(run, metrics(score))
            self.tracking.log_dict(run, policy, "policy.json")
            self.tracking.log_dict(run, score.as_dict(), "result.json")

        self._end(run_id, "FINISHED", fill)

    def confirmed(self, run_id: str | None, score: PolicyScore, better: bool) -> None:
        def fill(run: str) -> None:
            self.tracking.set_tags(run, {"chosen": True, "better_on_fresh_items": better})
            self.tracking.log_metrics(run, {f"confirm/{name}": value for name, value in metrics(score).items()})
            self.tracking.log_dict(run, score.as_dict(), "confirmation.json")

        self._end(run_id, "FINISHED", fill)

    def close(self) -> None:
        """The search is over; the run of a fit ended with the fit."""
        if self.is_own:
            self._end(self.parent, "FINISHED", lambda run: None)

    def cut_off(self, run_id: str | None, status: RunStatus, reason: str) -> None:
        """Of a trial that did not finish."""
        with suppress(RegistryError):  # whatever ended the trial is the error worth telling
            self._end(run_id, status, lambda run: self.tracking.set_tags(run, {"failure": reason[:5000]}))

    def _end(self, run_id: str | None, status: RunStatus, fill: Callable[[str], None]) -> None:
        if run_id is None:
            return
        try:
            fill(run_id)
            self.tracking.end_run(run_id, status)
        except RegistryUnreachable:
            raise
        except RegistryError as error:
            self.note(f"not tracked: {error}")


def metrics(score: PolicyScore) -> dict[str, float]:
    def told(name: str, change: Change) -> dict[str, float]:
        return {
            f"{name}/{what}_{edge}": value
            for what, ends in (("right", change.right), ("tokens", change.tokens))
            for edge, value in zip(("change", "low", "high"), ends, strict=True)
        }

    changes = [told(f"against {name}", change) for name, change in score.changes.items()]
    return {
        "accuracy": score.accuracy,
        "tokens": score.tokens,
        "feasible": float(score.feasible),
        **{name: value for one in changes for name, value in one.items()},
        **{f"constraint/{family}": value for family, value in score.constraints.items()},
    }
