"""The two objectives and the constraints of a trial, from what was measured.

Domain gain is one. Retention is the other: over the protected families, the mean of min(0, change / margin), so that gains
buy nothing and every loss counts in units of what is tolerable. One constraint a family, at or below 0 when it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.retention import DEFAULT_MARGINS, capped_retention, violations

GENERATED_MARGIN = DEFAULT_MARGINS["share right in every step"]


@dataclass(frozen=True)
class ScaleScore:
    """One scale of a fitted adapter, scored by likelihood on the search split. Changes are adapted minus backbone."""

    scale: float
    domain_gain: float
    domain_accuracy: float
    chain_changes: Mapping[str, float]

    def violations(self, margins: Mapping[str, float]) -> dict[str, float]:
        """By family: how far the loss exceeds the margin, in margins; at or below 0 is tolerable."""
        return violations(self.chain_changes, margins)

    def retention(self, margins: Mapping[str, float]) -> float:
        return capped_retention(self.chain_changes, margins)


@dataclass(frozen=True)
class TrialScore:
    """What a trial reports: the chosen scale, every scale that was tried, and the generation check at the chosen one."""

    chosen: ScaleScore
    scales: tuple[ScaleScore, ...]
    generated_changes: Mapping[str, float]
    retention: float
    constraints: Mapping[str, float]
    forward_kl: float

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"feasible": self.feasible}


def choose_scale(scores: Sequence[ScaleScore], margins: Mapping[str, float]) -> ScaleScore:
    """The largest gain among the scales that lose nothing intolerable; if there is none, the one that loses least."""
    tolerable = [score for score in scores if all(v <= 0 for v in score.violations(margins).values())]
    if tolerable:
        return max(tolerable, key=lambda score: (score.domain_gain, score.retention(margins)))
    return max(scores, key=lambda score: (score.retention(margins), score.domain_gain))


def constraints(chosen: ScaleScore, generated: Mapping[str, float], margins: Mapping[str, float]) -> dict[str, float]:
    """The worse of the likelihood's and the generation's violation, by family."""
    by_chain = chosen.violations(margins)
    by_text = violations(generated, dict.fromkeys(generated, GENERATED_MARGIN))
    return {family: max(by_chain.get(family, -1.0), by_text.get(family, -1.0)) for family in {**by_chain, **by_text}}
