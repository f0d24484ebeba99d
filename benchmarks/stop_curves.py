"""Made-up trials with readings, of the shape and noise of real ones: what rules do on more studies than anybody can run.

By trial: a gain that saturates, quickly or slowly; a loss of each family that grows with the steps and the cube of the scale, up
to a hundred margins, from a tenth of a margin at full scale to all of it and, in every fifth trial, largest amid the fit. Noise:
0.5 / sqrt(items) of the gain, and of each family's change a third of it and a fifth of a margin. Seconds are about those of a
trial of the quickstart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuning.objective import ScaleScore, in_order
from tuning.stop_curve import FamilyChange, FitReading, Point

FAMILIES = tuple("abcdefg")
SCALES = (0.25, 0.5, 0.75, 1.0)
MARGINS = dict.fromkeys(FAMILIES, 1.0)
READ_S, PHASES = 4.0, {"load": 4.0, "fit": 50.0, "measure": 55.0}  # of one scale at a checkpoint, and of the trial
MOST = 100.0  # margins
DOMAIN_ITEMS, READ_ITEMS = 150, 32


@dataclass
class Trial:
    """One draw; a share of the fit is in (0, 1]."""

    drawn: np.random.Generator
    gain: float = 0.0
    speed: float = 0.0
    loss: dict[str, float] = field(default_factory=dict)
    growth: float = 0.0
    recovers: bool = False

    def __post_init__(self) -> None:
        drawn = self.drawn
        self.gain, self.speed, self.growth = drawn.uniform(0, 0.25), drawn.uniform(1, 6), drawn.uniform(0.5, 2)
        full, self.recovers = 10 ** drawn.uniform(-1, 3), bool(drawn.random() < 0.2)
        self.loss = {family: float(full * drawn.lognormal(0, 0.7)) for family in FAMILIES}

    def gained(self, scale: float, share: float) -> float:
        return float(self.gain * scale**0.6 * np.expm1(-self.speed * share) / np.expm1(-self.speed))

    def changed(self, scale: float, share: float) -> dict[str, float]:
        grown = share**self.growth * (3 - 2 * share if self.recovers else 1)
        return {family: float(MOST * np.expm1(-loss * scale**3 * grown / MOST)) for family, loss in self.loss.items()}

    def point(self, scale: float, share: float) -> Point:
        stderr = 0.5 / READ_ITEMS**0.5
        families = {}
        for family, change in self.changed(scale, share).items():
            noise = (change**2 / 9 + 0.04) ** 0.5
            mean = float(self.drawn.normal(change, noise))
            families[family] = FamilyChange(mean, mean - 1.96 * noise, mean + 1.96 * noise, noise)
        return Point(scale, float(self.drawn.normal(self.gained(scale, share), stderr)), stderr, families)

    def reading(self, share: float) -> FitReading:
        points = [self.point(SCALES[-1], share)]
        if not points[0].is_tolerable:
            points.insert(0, self.point(SCALES[0], share))
        return FitReading(share, (READ_ITEMS, 8), tuple(points), SCALES[0], READ_S * len(points))

    def row(self, checkpoints: tuple[float, ...]) -> dict[str, Any]:
        """As a trial is recorded."""
        curve, stderr = [self.reading(share) for share in checkpoints], 0.5 / DOMAIN_ITEMS**0.5
        scores = [
            ScaleScore(scale, float(self.drawn.normal(self.gained(scale, 1), stderr)), 0.5, self.changed(scale, 1), stderr)
            for scale in SCALES
        ]
        chosen = in_order(scores, MARGINS)[0]
        score = {
            "chosen": {"domain_gain": chosen.domain_gain, "gain_stderr": stderr},
            "retention": chosen.retention(MARGINS),
            "constraints": dict(chosen.violations(MARGINS)),
            "feasible": all(value <= 0 for value in chosen.violations(MARGINS).values()),
        }
        seconds = {**PHASES, "probe": sum(reading.seconds for reading in curve)}
        return {"curve": [reading.as_dict() for reading in curve], "score": score, "seconds": seconds, "commit": "made up"}


def made_up(seed: int, trials: int, checkpoints: tuple[float, ...] = (0.33, 0.67)) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed)
    return [Trial(drawn).row(checkpoints) for _ in range(trials)]
