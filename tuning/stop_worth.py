"""Whether one more reading is expected to save more time than it takes, by what earlier ones did in the same study.

Where a fit that loses too much is rescued by a smaller scale, hardly any is stopped, and readings are a fifth of a sweep's time
(docs/results.md, "Stop rules").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from tuning.budget import SECONDS_KEY
from tuning.stop_curve import curve_of

# User attributes of a trial. Seconds since its start when it was read, by checkpoint; the checkpoint after which rules ended it;
# and whether it was read as a measure for others only, which nothing stops.
READ_AT_KEY, STOPPED_AT_KEY, SPARED_KEY = "read_at", "stopped_at", "spared"


@dataclass(frozen=True)
class Past:
    """Of the readings at one checkpoint: how many, how many of them ended their trial, and mean seconds.

    `rest_s`: what a trial that ends well takes after that checkpoint, later readings left out.
    """

    readings: int
    stops: int
    reading_s: float
    rest_s: float

    @property
    def chance(self) -> float:
        """That the next reading ends its trial: Laplace's rule of succession."""
        return (self.stops + 1) / (self.readings + 2)

    @property
    def is_worth(self) -> bool:
        return self.chance * self.rest_s > self.reading_s


def past_of(trials: Sequence[FrozenTrial], checkpoint: float) -> Past | None:
    """None before both a reading and what follows it are known."""
    took, rests, judged, stops = list[float](), list[float](), 0, 0
    for trial in trials:
        curve = curve_of(trial.user_attrs)
        here = next((reading for reading in curve if reading.checkpoint == checkpoint), None)
        if here is None:
            continue
        took.append(here.seconds)
        judged += not trial.user_attrs.get(SPARED_KEY, False)
        stops += trial.user_attrs.get(STOPPED_AT_KEY) == checkpoint
        if (read_at := _read_at(trial, checkpoint)) is not None and trial.state == TrialState.COMPLETE:
            later = sum(reading.seconds for reading in curve if reading.checkpoint > checkpoint)
            rests.append(float(trial.user_attrs[SECONDS_KEY]) - read_at - later)
    return Past(judged, stops, fmean(took), fmean(rests)) if rests else None


def _read_at(trial: FrozenTrial, checkpoint: float) -> float | None:
    told: Mapping[str, float] = trial.user_attrs.get(READ_AT_KEY, {})
    return told.get(f"{checkpoint:g}") if SECONDS_KEY in trial.user_attrs else None
