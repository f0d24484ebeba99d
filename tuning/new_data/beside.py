"""A candidate beside the champion that it went on from: no worse on the old rows, better on the new ones, on gate items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.profile import Profile
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.significance import Verdict, non_inferiority
from evaluation.statistics import paired_change
from evaluation.task import Example, Task
from tuning.plan import DOMAIN_MEASURE

OLD_MARGIN = 0.05  # the share of the old rows that a candidate may get wrong more often than the champion
ALPHA = 0.05  # one-sided, of each; both must be shown


@dataclass(frozen=True)
class Beside:
    """Candidate minus champion on rows that neither was fitted on, each with one-sided bounds at ALPHA."""

    old_verdict: Verdict
    old: float
    old_low: float
    num_old: int
    old_needed: int | None  # rows in all that would decide it
    new_verdict: Verdict
    new: float
    new_low: float
    num_new: int

    @property
    def passed(self) -> bool:
        return self.old_verdict == self.new_verdict == "pass"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        new = f"{self.new:+.3f} (at least {self.new_low:+.3f}) on {self.num_new} new rows: {self.new_verdict}"
        old = f"{self.old:+.3f} (at least {self.old_low:+.3f}, {-OLD_MARGIN:+.2f} is tolerable) on {self.num_old} old rows"
        return f"beside the champion: {new}; {old}: {self.old_verdict}"


def beside_champion(
    engine: Engine,
    backbone: Backbone,
    champion: Profile,
    candidate: Profile,
    task: Task,
    old: Sequence[Example],
    new: Sequence[Example],
) -> Beside:
    """`old` and `new` are rows of the gate split: the candidate was not chosen on them."""
    measure = MEASURES[DOMAIN_MEASURE]
    plan = [Planned(measure, task, old, "domain"), Planned(measure, task, new, "written")]
    engine.load("champion", champion)
    try:
        engine.load("candidate", candidate)
        try:
            first, second = evaluate(engine, backbone, "candidate", plan, beside="champion").rows
        finally:
            engine.unload("candidate")
    finally:
        engine.unload("champion")
    return beside_of(first, second)


def beside_of(old: Row, new: Row) -> Beside:
    kept = non_inferiority(old.base.values, old.adapted.values, old.base.clusters, OLD_MARGIN, ALPHA)
    gained = paired_change(new.base.values, new.adapted.values, new.base.clusters, confidence=1 - 2 * ALPHA)
    shown: Verdict = "pass" if gained.low > 0 else "fail" if gained.high < 0 else "inconclusive"
    return Beside(
        kept.verdict,
        kept.change.mean,
        kept.change.low,
        kept.change.n,
        kept.items_needed,
        shown,
        gained.mean,
        gained.low,
        gained.n,
    )
