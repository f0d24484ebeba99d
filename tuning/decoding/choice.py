"""Which policy is better: what is claimed of it, the one that is tested again, and whether the test bears it out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluation.bootstrap import unseen_share
from tuning.decoding.reading import Written

Claim = Literal["fewer tokens", "more right"]
_ROUNDING = 1e-9  # of an accuracy and a change that are added up


@dataclass(frozen=True)
class Change:
    """Of one profile against another on the same items, with 95 % intervals; tokens are a reply's mean.

    Where replies differ and no answer does, the interval is what so many items leave open, and not 0 alone.
    """

    right: tuple[float, float, float]
    tokens: tuple[float, float, float]
    right_stderr: float

    @classmethod
    def between(cls, reference: Written, written: Written) -> Change:
        right, tokens = written.accuracy_change(reference), written.tokens_change(reference)
        stderr = 0.0 if math.isnan(right.stderr) else right.stderr  # of a single item
        unseen = 0.0 if any(right.per_item) or not any(tokens.per_item) else unseen_share(right.n, right.confidence)
        return cls((right.mean, right.low - unseen, right.high + unseen), (tokens.mean, tokens.low, tokens.high), stderr)

    def claim(self, tolerance: float) -> Claim | None:
        """Fewer tokens where the answers lost are shown to be tolerable, or more right answers; None where neither is shown."""
        if self.tokens[2] < 0 and self.right[1] >= -tolerance:
            return "fewer tokens"
        return "more right" if self.right[1] > 0 else None

    def bears(self, claim: Claim, tolerance: float) -> bool:
        if claim == "more right":
            return self.right[1] > 0
        return self.tokens[2] < 0 and self.right[1] >= -tolerance


@dataclass(frozen=True)
class PolicyScore:
    """What a trial reports. `changes` are against the references, by their names."""

    accuracy: float
    tokens: float
    changes: Mapping[str, Change]
    constraints: Mapping[str, float]

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())

    def measurable(self, name: str, tolerance: float) -> bool:
        """Whether the reference is right more often than the tolerance: else all its answers may go within it."""
        return self.accuracy - self.changes[name].right[0] > tolerance + _ROUNDING

    def claims(self, tolerance: float) -> dict[str, Claim] | None:
        """What is claimed against each reference; None where against one there is nothing to claim."""
        found = {name: change.claim(tolerance) for name, change in self.changes.items()}
        if any(claim == "fewer tokens" and not self.measurable(name, tolerance) for name, claim in found.items()):
            return None
        claimed = {name: claim for name, claim in found.items() if claim is not None}
        return claimed if len(claimed) == len(found) else None

    def bears(self, claims: Mapping[str, Claim], tolerance: float) -> bool:
        return self.feasible and all(self.changes[name].bears(claim, tolerance) for name, claim in claims.items())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> PolicyScore:
        changes = {
            name: Change(tuple(one["right"]), tuple(one["tokens"]), one["right_stderr"])
            for name, one in stored["changes"].items()
        }
        return cls(stored["accuracy"], stored["tokens"], changes, stored["constraints"])


def chosen(scores: Sequence[PolicyScore], tolerance: float) -> PolicyScore | None:
    """The one to test again; None where nothing is claimed of any that keeps the protected families.

    One-standard-error rule: of those whose accuracy is within one standard error of the largest (its own, against the first
    reference), the one that writes least, since the difference in accuracy is noise and the tokens are not.
    """
    claimed = [score for score in scores if score.feasible and score.claims(tolerance) is not None]
    if not claimed:
        return None
    best = max(claimed, key=lambda score: score.accuracy)
    least = best.accuracy - next(iter(best.changes.values())).right_stderr
    return min((score for score in claimed if score.accuracy >= least), key=lambda score: score.tokens)
