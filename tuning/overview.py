"""A study as it stands, for whoever looks at it from outside: read from its storage alone, while workers go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.asked import Wish, limits, wish
from tuning.budget import SECONDS_KEY, WORKER_KEY, Left, Spent, began_at, cost_of, left, spent
from tuning.candidates import Candidate, candidates_of
from tuning.hypervolume import hypervolume_of
from tuning.importance import importances, too_few
from tuning.recipe import Recipe
from tuning.storage import PatientStorage

_SHOWN_FAILURES = 10


@dataclass(frozen=True)
class Running:
    """A trial that runs. `alive` is None where no storage was asked."""

    trial: int
    worker: str
    seconds: float
    alive: bool | None


@dataclass(frozen=True)
class Ended:
    """A trial without values, and why."""

    trial: int
    state: str
    reason: str


@dataclass(frozen=True)
class Overview:
    study: str
    asked: Wish
    states: dict[str, int]  # by the name of the state; waiting ones are those that will be tried next
    wanted: int  # finished trials
    time_budget_s: float | None
    max_cost: float | None
    currency: str
    spent: Spent
    cost: float | None  # None: no price is known
    left: Left
    eta_s: float | None  # None: no trial ended yet, or nothing is left
    running: tuple[Running, ...]
    candidates: tuple[Candidate, ...]  # in the order in which they are gated
    hypervolume: float  # see tuning.hypervolume
    failures: tuple[Ended, ...]  # the last ones
    importances: dict[str, dict[str, float]]
    no_importances: str  # why there are none

    @property
    def finished(self) -> int:
        return self.states.get("COMPLETE", 0) + self.states.get("PRUNED", 0)

    @property
    def best(self) -> Candidate | None:
        """The feasible one that would be published."""
        return next((candidate for candidate in self.candidates if candidate.feasible), None)

    @property
    def over(self) -> bool:
        """Whether nothing runs, and nothing more would begin."""
        return not self.running and (self.asked == "stop" or not self.left.may_begin)

    def as_dict(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("candidates", "spent", "left")}
        return told | {
            "finished": self.finished,
            "over": self.over,
            "spent": asdict(self.spent),
            "left": asdict(self.left),
            "running": [asdict(one) for one in self.running],
            "failures": [asdict(one) for one in self.failures],
            "best": None if self.best is None else row_of(self.best),
            "candidates": [row_of(candidate) for candidate in self.candidates],
        }


def overview(study: optuna.Study, recipe: Recipe, storage: PatientStorage | None = None, now: float | None = None) -> Overview:
    """`storage` is where the study is kept, and hears heartbeats; `now` in seconds since the epoch."""
    clock = time.time() if now is None else now
    trials, bounds = study.get_trials(deepcopy=False), limits(study, recipe)
    used, remaining = spent(study, clock), left(study, recipe, clock)
    running, found = _running(study, trials, storage, clock), candidates_of(study)
    return Overview(
        study=study.study_name,
        asked=wish(study),
        states=dict(Counter(trial.state.name for trial in trials)),
        wanted=bounds.trials,
        time_budget_s=bounds.time_budget_s,
        max_cost=bounds.max_cost,
        currency=bounds.currency,
        spent=used,
        cost=None if bounds.price_per_hour is None else cost_of(used.worker_s, bounds.price_per_hour),
        left=remaining,
        eta_s=_eta_s(trials, running, remaining, clock),
        running=running,
        candidates=tuple(found),
        hypervolume=hypervolume_of(found),
        failures=tuple(_ended(trial) for trial in trials if trial.state in (TrialState.PRUNED, TrialState.FAIL))[
            -_SHOWN_FAILURES:
        ],
        importances=importances(study),
        no_importances=too_few(study),
    )


def row_of(candidate: Candidate) -> dict[str, Any]:
    """For tables and scripts."""
    return {
        "trial": candidate.trial,
        "feasible": candidate.feasible,
        "domain_gain": candidate.domain_gain,
        "retention": candidate.retention,
        "params": candidate.params,
        "directory": str(candidate.directory),
        "removed": candidate.removed,
    }


def _running(
    study: optuna.Study, trials: Sequence[FrozenTrial], storage: PatientStorage | None, now: float
) -> tuple[Running, ...]:
    late = set(storage.unheard(study._study_id)) if storage is not None else set()
    return tuple(
        Running(
            trial.number,
            str(trial.user_attrs.get(WORKER_KEY, "")),
            max(0.0, now - began_at(trial, now)),
            trial._trial_id not in late if storage is not None else None,
        )
        for trial in trials
        if trial.state == TrialState.RUNNING
    )


def _eta_s(trials: Sequence[FrozenTrial], running: Sequence[Running], remaining: Left, now: float) -> float | None:
    """By the mean time of the trials that ended, over the workers that are alive; within what is left of the time budget."""
    took = [float(t.user_attrs[SECONDS_KEY]) for t in trials if t.state.is_finished() and SECONDS_KEY in t.user_attrs]
    workers = sum(one.alive is not False for one in running)
    if not took or (remaining.used_up and not workers):
        return None
    mean, to_begin = sum(took) / len(took), 0 if remaining.used_up and remaining.trials else remaining.trials
    rest = sum(max(0.0, mean - one.seconds) for one in running if one.alive is not False)
    guess = (rest + mean * to_begin) / max(1, workers)
    return guess if remaining.seconds is None else min(guess, max(0.0, remaining.seconds))


def _ended(trial: FrozenTrial) -> Ended:
    reason = str(trial.user_attrs.get("failure", "its worker was gone")).strip().splitlines()
    return Ended(trial.number, trial.state.name, reason[-1] if reason else "")
