"""The gate's report: one verdict with every number behind it, as JSON, as a sentence and as table rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from registry.evidence import Evidence
from registry.gate_settings import GateSettings

Verdict = Literal["pass", "fail", "inconclusive"]
Role = Literal["domain", "protected", "pooled", "written"]  # written: the domain, as the decoding policy has it written
Stopped = Literal["decided", "out of time", "out of rounds", "out of items"]
POOLED = "all protected families"
POOLED_SHARES = "all protected families in shares"  # where others are in nats, which no mean can join
COLUMNS = ("test", "verdict", "backbone", "adapted", "change", "one-sided bounds", "must be above", "items", "more needed")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class FamilyVerdict(_Value):
    """One test. Means are over its independent units: change = adapted - base, and the bounds are on that same mean.

    `lower` and `upper` are two one-sided bounds, each of confidence 1 - alpha at every look at once (the settings'
    `candidate_alpha`); together they hold with 1 - 2 alpha. A pass needs `lower` above the threshold. A fail needs the same of
    the harm at a smaller alpha, that divided by the number of tests, so `upper` below the threshold alone is not yet a fail.
    """

    name: str
    role: Role
    verdict: Verdict
    base_mean: float
    adapted_mean: float
    change: float
    lower: float
    upper: float
    threshold: float  # the change must be above this: minus the margin, or the least gain
    stderr: float | None  # of the change, over the same units; None with fewer than two
    num_items: int
    num_units: int  # independent ones: clusters, or items where the clusters are a fixed set
    items_needed: int | None  # more items like these until it passes; 0 when it did, None when they never would
    worst_cluster: str | None = None  # where the largest loss sits; None when no cluster lost
    worst_change: float | None = None


class SeedVerdict(_Value):
    """The gate of the same recipe fitted under other seeds."""

    number: int  # by which every seed was raised
    verdict: Verdict
    sentence: str


class GateReport(_Value):
    """`tests` are the domain, the protected families and, where asked for, all of them pooled; of adapters under a decoding
    policy, also what that has them write of the domain.

    `seeds` are the other fits of the recipe that were asked for; the verdict is on all of them together.
    """

    subject: str  # NAME@VERSION, or the directory that was gated
    verdict: Verdict
    settings: GateSettings
    tests: tuple[FamilyVerdict, ...]
    not_measurable: dict[str, str]  # family: why the backbone cannot show a loss there
    rounds: int
    elapsed_s: float
    stopped: Stopped
    rounds_before: int = 0  # of `rounds`, those of earlier gates that this one went on from
    seeds: tuple[SeedVerdict, ...] = ()
    details: dict[str, JsonValue] = Field(default_factory=dict)  # seeds, fingerprints, whatever names the evidence
    evidence: Evidence | None = Field(default=None, exclude=True, repr=False)  # kept beside the report, not in it

    def with_seeds(self, seeds: Sequence[SeedVerdict]) -> GateReport:
        """The report on the recipe: a pass only where this release and every other fit passed."""
        verdicts = {self.verdict, *(seed.verdict for seed in seeds)}
        verdict: Verdict = "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "inconclusive"
        return self.model_copy(update={"verdict": verdict, "seeds": tuple(seeds)})

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    @property
    def domain(self) -> FamilyVerdict:
        return next(test for test in self.tests if test.role == "domain")

    @property
    def families(self) -> tuple[FamilyVerdict, ...]:
        return tuple(test for test in self.tests if test.role == "protected")

    @property
    def written(self) -> FamilyVerdict | None:
        """The domain's written answers under the decoding policy, against those without it."""
        return next((test for test in self.tests if test.role == "written"), None)

    @property
    def pooled(self) -> FamilyVerdict | None:
        return next((test for test in self.tests if test.role == "pooled"), None)

    @property
    def items_needed(self) -> int | None:
        """More items a test until the slowest one passes; None when some test never would."""
        needed = [test.items_needed for test in self.tests]
        known = [count for count in needed if count is not None]
        return max(known, default=0) if len(known) == len(needed) else None

    def digest(self) -> str:
        """SHA-256 of the report as canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sentence(self) -> str:
        """The verdict with its reason, in one sentence."""
        if self.verdict == "pass":
            kept, unseen = len(self.families), len(self.not_measurable)
            named = f"all {kept} protected families" if kept > 1 else "the protected family"
            left_out = f" ({unseen} more could show no loss on this backbone)" if unseen else ""
            bound = f"at least {self.domain.lower:+.3f} at alpha {self.settings.candidate_alpha:.2g}"
            written = ", as did what is written under its decoding policy" if self.written else ""
            seeds = f", under each of {1 + len(self.seeds)} training seeds" if self.seeds else ""
            return (
                f"{self.subject} passed: {self.domain.name} gained {self.domain.change:+.3f} ({bound}), "
                f"and {named}{left_out} stayed within the margins{written}{seeds}."
            )
        if (other := next((seed for seed in self.seeds if seed.verdict == self.verdict), None)) is not None:
            return f"{self.subject} passed, but not under every training seed: {other.sentence}"
        if self.verdict == "fail":
            named = "; ".join(_shortfall(test) for test in self.tests if test.verdict == "fail")
            return f"{self.subject} failed: {named}."
        if not self.families:
            return f"{self.subject} is undecided: no protected family is measurable on this backbone, so no loss could be seen."
        open_tests = [test for test in self.tests if test.verdict == "inconclusive"]
        more = "; ".join(f"{test.name} ({_more(test)})" for test in open_tests)
        return f"{self.subject} is undecided after {self.rounds} rounds ({self.stopped}): {more}."

    def rows(self) -> list[tuple[str, ...]]:
        """One row a test under COLUMNS, then what is not measurable, then other seeds. Means are over units, needs in items."""
        rows: list[tuple[str, ...]] = [
            (
                test.name,
                test.verdict,
                f"{test.base_mean:.3f}",
                f"{test.adapted_mean:.3f}",
                f"{test.change:+.3f}",
                f"[{test.lower:+.3f}, {test.upper:+.3f}]",
                f"{test.threshold:+.3f}",
                str(test.num_items) + (f" in {test.num_units} units" if test.num_units != test.num_items else ""),
                "never" if test.items_needed is None else str(test.items_needed),
            )
            for test in self.tests
        ]
        more = [(name, "not measurable") for name in self.not_measurable]
        more += [(f"training seed +{seed.number}", seed.verdict) for seed in self.seeds]
        rows.extend((*pair, *[""] * (len(COLUMNS) - 2)) for pair in more)
        return rows


def _shortfall(test: FamilyVerdict) -> str:
    what = "gained" if test.role == "domain" else "changed by"
    where = f", most of all in {test.worst_cluster}" if test.worst_cluster and test.role != "domain" else ""
    return f"{test.name} {what} {test.change:+.3f} (at most {test.upper:+.3f}, must be above {test.threshold:+.3f}{where})"


def _more(test: FamilyVerdict) -> str:
    if test.items_needed is None:
        return f"change {test.change:+.3f}: more of the same would not show it to be above {test.threshold:+.3f}"
    return f"needs about {test.items_needed} more items" if test.items_needed else "passed"
