"""What is counted of releases: of each one since the process started, and of the two sides of a canary while it runs."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from dataclasses import dataclass, field

from pydantic import JsonValue

from registry.canary_chain import Canary
from registry.canary_statistics import Finding, Period, spent
from service.writing import Writing

log = logging.getLogger("graftline.canary")

# After so many requests a period is over and the next begins, so that a canary that goes bad late is seen as well.
PERIOD_REQUESTS = 4096
_FIRST_LOOK, _GROWTH = 8, 1.5
MAX_RELEASES = 256


@dataclass(frozen=True)
class Ending:
    """How a request ended, as far as its release had a part in it."""

    failed: bool  # by the server; a refused request and one whose client left are the client's
    is_clients: bool
    tokens: int
    first_token_s: float | None
    token_s: float | None  # a token after the first, by choice

    @classmethod
    def of(cls, writing: Writing) -> Ending:
        in_vain = writing.outcome == "timeout" and writing.allowed.is_clients  # in a time of the client's choice
        failed = writing.outcome in ("failed", "timeout") and not in_vain
        per_choice, token_s = writing.generated_tokens / max(len(writing.requests), 1), None
        if writing.first_token_s is not None and writing.ended_s is not None and per_choice > 1:
            token_s = (writing.ended_s - writing.first_token_s) / (per_choice - 1)
        is_clients = in_vain or writing.outcome in ("cancelled", "refused")
        return cls(failed, is_clients, writing.generated_tokens, writing.first_token_s, token_s)


@dataclass
class Counts:
    """Of one release, or of one side."""

    requests: int = 0
    failed: int = 0
    of_clients: int = 0  # refused, or left by their clients
    generated_tokens: int = 0
    _first_token_s: float = 0.0
    _first_tokens: int = 0
    _token_s: float = 0.0
    _tokens: int = 0

    def add(self, ending: Ending) -> None:
        self.requests += 1
        self.failed += ending.failed
        self.of_clients += ending.is_clients
        self.generated_tokens += ending.tokens
        if ending.first_token_s is not None:
            self._first_token_s += ending.first_token_s
            self._first_tokens += 1
        if ending.token_s is not None:
            self._token_s += ending.token_s
            self._tokens += 1

    def wire(self) -> dict[str, JsonValue]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "of_clients": self.of_clients,
            "generated_tokens": self.generated_tokens,
            "first_token_s": _rounded(self._first_token_s / self._first_tokens) if self._first_tokens else None,
            "token_s": _rounded(self._token_s / self._tokens) if self._tokens else None,
        }


class ReleaseCounts:
    """By NAME@VERSION; of many the one that was used longest ago is forgotten."""

    def __init__(self) -> None:
        self._by_release: OrderedDict[str, Counts] = OrderedDict()

    def of(self, release: str) -> Counts:
        counts = self._by_release.setdefault(release, Counts())
        self._by_release.move_to_end(release)
        if len(self._by_release) > MAX_RELEASES:
            self._by_release.popitem(last=False)
        return counts

    def seen(self, release: str) -> Counts:
        return self._by_release.get(release, Counts())


@dataclass
class Monitor:
    """One canary under one share, as one process sees it. Its looks are numbered on for as long as the canary runs."""

    canary: Canary
    champion_counts: Counts = field(default_factory=Counts)
    canary_counts: Counts = field(default_factory=Counts)
    looks: int = 0
    findings: tuple[Finding, ...] = ()  # of the last look
    period: Period = field(default_factory=Period)
    _due: int = _FIRST_LOOK

    def with_share_of(self, canary: Canary) -> Monitor:
        """Counts and looks go on; what was compared under another share does not."""
        if canary.share == self.canary.share:
            self.canary = canary
            return self
        return Monitor(canary, self.champion_counts, self.canary_counts, self.looks)

    def note(self, key: bytes, on_canary: bool, ending: Ending) -> None:
        (self.canary_counts if on_canary else self.champion_counts).add(ending)
        if ending.is_clients and ending.first_token_s is None:
            return
        unit = self.period.unit(key, on_canary)
        unit.failures += ending.failed
        if ending.first_token_s is not None:
            unit.first_token_s += ending.first_token_s
            unit.first_tokens += 1
        if ending.token_s is not None:
            unit.token_s += ending.token_s
            unit.tokens += 1

    def note_pair(self, key: bytes, shadow: Ending, champion: Ending) -> None:
        """Of a request that was mirrored; the champion's own counts hold it already."""
        self.canary_counts.add(shadow)
        unit = self.period.unit(key, True)
        unit.failures += shadow.failed
        unit.differences += shadow.failed - champion.failed

    @property
    def is_due(self) -> bool:
        return self.period.requests >= self._due

    def look(self) -> Finding | None:
        """The first finding beyond its bound. Looks come at numbers of requests fixed beforehand, whatever they may show."""
        while self._due <= self.period.requests:
            self._due = math.ceil(self._due * _GROWTH)
        self.looks += 1
        bounds, alpha = self.canary.bounds, spent(self.canary.bounds.alpha, self.looks)
        if self.canary.shadow:
            self.findings = self.period.paired_findings(bounds, alpha)
        else:
            self.findings = self.period.findings(self.canary.share, bounds, alpha)
        beyond = next((finding for finding in self.findings if finding.is_beyond), None)
        if beyond is None and self.period.requests >= PERIOD_REQUESTS:
            self.period, self._due = Period(), _FIRST_LOOK
        return beyond

    def reason(self, finding: Finding) -> str:
        """For the ledger: what was found, on how many requests, and how sure it is."""
        bounds, period = self.canary.bounds, self.period
        if finding.of == "error rate":
            numbers = f"{finding.canary:.1%} against {finding.champion:.1%}, more than {bounds.max_error_rate_rise:.1%} above"
        else:
            numbers = f"{finding.canary:.3g} s against {finding.champion:.3g} s, more than {bounds.max_latency_ratio:g} times"
        requests = f"{period.canary_requests} of its requests"
        if not self.canary.shadow:
            requests += f" and {period.requests - period.canary_requests} of the champion's"
        sure = f"look {self.looks}, p < {10**-finding.evidence:.1g}, alpha {bounds.alpha:g} over all looks"
        return f"rolled back by the service: {finding.of} {numbers}, on {requests} ({sure})"

    def wire(self) -> dict[str, JsonValue]:
        return {
            "champion": self.champion_counts.wire(),
            "canary": self.canary_counts.wire(),
            "compared": {"requests": self.period.requests, "canary_requests": self.period.canary_requests},
            "keys": len(self.period.units),
            "looks": self.looks,
            "findings": [
                {
                    "of": finding.of,
                    "canary": _rounded(finding.canary),
                    "champion": _rounded(finding.champion),
                    "evidence": _rounded(finding.evidence),
                    "needed": _rounded(finding.needed),
                }
                for finding in self.findings
            ],
        }


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
