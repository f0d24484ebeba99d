"""The two objectives and the constraints of a trial, from what was measured.

Domain gain is one. Retention is the other: over the protected families, the mean of min(0, change / margin), so that gains
buy nothing and every loss counts in units of what is tolerable. One constraint a family, at or below 0 when it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.retention import DEFAULT_MARGINS, capped_retention, violations

WRITTEN_MARGIN = DEFAULT_MARGINS["share right in every step"]
POOLED_MARGIN = 0.05  # of all families together
POOLED = "all families written"


@dataclass(frozen=True)
class ScaleScore:
    """One scale of a fitted adapter, scored by likelihood on the search split. Changes are adapted minus backbone."""

    scale: float
    domain_gain: float
    domain_accuracy: float
    chain_changes: Mapping[str, float]
    gain_stderr: float = 0.0  # of the paired gain; 0 where its items show no spread
    forward_kl: float = 0.0  # KL(backbone || adapted) in nats per token of what the backbone writes to the domain's prompts

    def violations(self, margins: Mapping[str, float]) -> dict[str, float]:
        """By family: how far the loss exceeds the margin, in margins; at or below 0 is tolerable."""
        return violations(self.chain_changes, margins)

    def retention(self, margins: Mapping[str, float]) -> float:
        return capped_retention(self.chain_changes, margins)


@dataclass(frozen=True)
class Check:
    """One scale after writing from it: changes in traces right in every step, and every constraint."""

    scale: ScaleScore
    written: Mapping[str, float]
    constraints: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())


@dataclass(frozen=True)
class TrialScore:
    """What a trial reports: the chosen scale, every scale that was tried, and the generation check at the chosen one.

    `as_fitted` is the check at full scale, made for the recipe's own values: what shipping the fit as it is would lose.
    `num_items` is how many of the domain's items were read, where that was ended before the last; see tuning.stop_items.
    """

    chosen: ScaleScore
    scales: tuple[ScaleScore, ...]
    generated_changes: Mapping[str, float]
    retention: float
    constraints: Mapping[str, float]
    forward_kl: float
    as_fitted: Check | None = None
    num_items: int | None = None

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"feasible": self.feasible}


def in_order(scores: Sequence[ScaleScore], margins: Mapping[str, float]) -> list[ScaleScore]:
    """The scales to check by writing, best first: those that lose nothing intolerable. If there is none, the largest scale alone:
    what was fitted is then shown as it is, not at the scale that hides its loss best.

    One-standard-error rule: of the scales whose gain is within one standard error of the largest, the one that loses least comes
    first, since the difference in gain is noise and the loss is not.
    """
    tolerable = [score for score in scores if all(v <= 0 for v in score.violations(margins).values())]
    if not tolerable:
        return [max(scores, key=lambda score: score.scale)]
    largest = max(score.domain_gain for score in tolerable)
    return sorted(
        tolerable,
        key=lambda score: (score.domain_gain + score.gain_stderr >= largest, score.retention(margins), score.domain_gain),
        reverse=True,
    )


def constraints(
    chosen: ScaleScore, written: Mapping[str, float], num_written: Mapping[str, int], margins: Mapping[str, float]
) -> dict[str, float]:
    """By family the worse of the likelihood's and the writing's violation, and the writing of all families together.

    A trial writes few traces, so that chance alone flips some: a written loss counts where it exceeds the margin by more than
    one-sided 95 % chance at the margin does. The gate, which writes many, decides.
    """
    found = chosen.violations(margins)
    for family, change in written.items():
        allowed = tolerance(WRITTEN_MARGIN, num_written[family])
        found[family] = max(found.get(family, -1.0), -change / allowed - 1.0)
    total = sum(num_written.values())
    if total:
        mean = sum(change * num_written[family] for family, change in written.items()) / total
        found[POOLED] = -mean / tolerance(POOLED_MARGIN, total) - 1.0
    return found


def tolerance(margin: float, num_items: int) -> float:
    """The largest loss that a true loss of the margin shows in that many items, one-sided 95 % (normal approximation)."""
    return float(margin + 1.645 * (margin * (1 - margin) / num_items) ** 0.5)
