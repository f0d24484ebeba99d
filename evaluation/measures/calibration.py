"""Calibration: how well the probabilities over a closed set of answers fit what is right, by proper scores.

p is the softmax over an example's options of the scores that choice accuracy compares, so that the likeliest option is the one it
chooses; the set and its order are the same for backbone and adapter. Accuracy moves both scores: the summary says how much of a
change is confidence (reliability, temperature) and what is left once each side is scaled by its own temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.measure import Readings
from evaluation.measures.choice import score_options
from evaluation.reliability import best_temperature, brier, log_probability, murphy, probabilities
from evaluation.task import Example, Task, split_of


@dataclass(frozen=True)
class BrierScore:
    """Minus the sum over the options of (p - y)^2: 0 is certain and right, -2 certain and wrong.

    Parts: `confidence` (of the likeliest option), `right` (whether it is; a tie is not), `log_probability` (of the right option).
    """

    name: str = "brier_score"
    version: int = 1
    unit: str = "minus squared error"

    @staticmethod
    def value(scores: Sequence[float]) -> float:
        return -brier(scores)

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        scores = [found.used for found in score_options(engine, backbone, profile, task, examples)]
        most = max(map(len, scores), default=0)
        return Readings.of(
            self,
            task,
            examples,
            [self.value(row) for row in scores],
            {
                "confidence": [float(probabilities(row).max()) for row in scores],
                "right": [float(row[0] > max(row[1:])) for row in scores],
                "log_probability": [log_probability(row) for row in scores],
                **{f"_option_{place}": [row[place] if place < len(row) else math.nan for row in scores] for place in range(most)},
            },
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Of both sides: T* (above 1 is overconfident), and of the confidence in the chosen option, reliability and resolution.

        Temperatures are fitted on seven in ten of the groups; `rescaled_change` is the change of the score on the other
        groups with each side at its own: what is lost there is not confidence. None where a side has no temperature.
        """
        found: dict[str, float | None] = {}
        rescaled: list[list[float] | None] = []
        for side, readings in (("base", base), ("adapted", adapted)):
            scores, fits = _scores(readings), [_fits_temperature(group) for group in readings.clusters]
            temperature = best_temperature([row for row, fit in zip(scores, fits, strict=True) if fit])
            rest = [row for row, fit in zip(scores, fits, strict=True) if not fit]
            rescaled.append([-brier(row, temperature) for row in rest] if temperature and rest else None)
            parts = murphy(readings.parts["confidence"], readings.parts["right"])
            found[f"{side}_temperature"] = temperature
            found[f"{side}_reliability"], found[f"{side}_resolution"] = parts.reliability, parts.resolution
        before, after = rescaled
        found["rescaled_change"] = (sum(after) - sum(before)) / len(before) if before and after else None
        return found


@dataclass(frozen=True)
class CandidateLogProbability(BrierScore):
    """Natural log of the right option's probability within the closed set; its negative is the NLL. 0 is certain and right."""

    name: str = "candidate_log_probability"
    unit: str = "nats"

    @staticmethod
    def value(scores: Sequence[float]) -> float:
        return log_probability(scores)


def _fits_temperature(group: str) -> bool:
    # Not the group's own split, which all items of a domain share.
    return split_of(f"temperature/{group}") in ("train", "search")


def _scores(readings: Readings) -> list[tuple[float, ...]]:
    """Of every item's options, the right one first."""
    columns = [values for name, values in readings.parts.items() if name.startswith("_option_")]
    return [tuple(score for score in row if not math.isnan(score)) for row in zip(*columns, strict=True)]
