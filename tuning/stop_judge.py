"""What a trial's parent makes of its readings: it keeps them with the trial, compares them with other trials', and decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from tuning.stop_curve import CURVE_KEY, FitReading, curve_of
from tuning.stop_pruners import is_pruned, percent
from tuning.stop_rules import below_floor, stopped
from tuning.stop_settings import StopRecipe
from tuning.stop_worth import READ_AT_KEY, SPARED_KEY, STOPPED_AT_KEY, past_of

STOPPED = "finished"  # the constraint of a trial that has no score; at or below 0 where it has one


def _unheard(reading: FitReading) -> None:
    pass


@dataclass
class StopJudge:
    """Of one running trial; called in the parent, with what its child says. `spares` hears all and stops nothing."""

    study: optuna.Study
    trial: optuna.Trial
    settings: StopRecipe
    spares: bool = False
    on_reading: Callable[[FitReading], None] = _unheard
    clock: Callable[[], float] = time.monotonic
    _curve: list[FitReading] = field(default_factory=list)
    _read_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def curve(self) -> list[dict[str, Any]]:
        """All readings so far."""
        return [one.as_dict() for one in self._curve]

    def __call__(self, kind: str, told: Mapping[str, Any]) -> str | None:
        if kind == "due":
            return self._of_due(float(told["checkpoint"]))
        try:
            reason = self._of_items(told) if kind == "items" else self._of_reading(FitReading.of(told))
        except UpdateFinishedTrialError:
            return "another worker, which heard nothing of this one, has given the trial up."
        return None if self.spares else reason

    def _of_due(self, checkpoint: float) -> str | None:
        """Why nothing should be read here."""
        if self.settings.reads_all:
            return None
        others = [trial for trial in self.study.get_trials(deepcopy=False) if trial.number != self.trial.number]
        past = past_of(others, checkpoint)
        if past is None or past.is_worth:
            return None
        return (
            f"{past.stops} of {past.readings} readings after {checkpoint:.0%} of a fit ended it; one takes "
            f"{past.reading_s:.0f} s and can save {past.rest_s:.0f} s."
        )

    def _of_reading(self, reading: FitReading) -> str | None:
        self._curve.append(reading)
        self.trial.set_user_attr(CURVE_KEY, self.curve)
        self._read_at[f"{reading.checkpoint:g}"] = self.clock() - self._began
        self.trial.set_user_attr(READ_AT_KEY, self._read_at)
        if self.spares:
            self.trial.set_user_attr(SPARED_KEY, True)
        self.on_reading(reading)
        reason = stopped(reading, self._rivals(reading), self.settings)
        lost = reading.least
        if reason is not None and lost and not self.spares and below_floor(reading, self.settings.floor):
            # Samplers rank what is not feasible by how far it is from it.
            for family, change in lost.families.items():
                self.trial.set_constraint(family, -change.mean - 1.0)
            self.trial.set_constraint(STOPPED, 1.0)
        reason = reason or self._of_pruner(reading)
        if reason is not None and not self.spares:
            self.trial.set_user_attr(STOPPED_AT_KEY, reading.checkpoint)
        return reason

    def _of_pruner(self, reading: FitReading) -> str | None:
        if self.settings.pruner not in ("median", "hyperband"):
            return None
        gain = reading.chosen.gain
        self.trial.report(gain, percent(reading.checkpoint))
        if not is_pruned(self.trial):
            return None
        return f"{self.settings.pruner}: a gain of {gain:+.3f} after {reading.checkpoint:.0%} of the fit is not among the best."

    def _of_items(self, told: Mapping[str, Any]) -> str | None:
        for place, change in told["changes"].items():
            self.trial.report(float(change), int(place))
        if not is_pruned(self.trial):
            return None
        return "wilcoxon: item by item, the best trial so far is better."

    def _rivals(self, reading: FitReading) -> list[FitReading]:
        """At the same checkpoint, one a trial: of trials that run, and of those that ended well."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        others = [trial for trial in trials if trial.number != self.trial.number and not _ended_badly(trial)]
        return [one for trial in others for one in curve_of(trial.user_attrs) if one.matches(reading)]


def _ended_badly(trial: FrozenTrial) -> bool:
    """What looked good at a checkpoint, and was not in the end, is no measure for others."""
    return trial.state == TrialState.COMPLETE and not trial.user_attrs.get("score", {}).get("feasible", True)
