"""Is a canary worse than its champion? Tests that may be looked at while traffic comes in, with one level over all looks.

Who is on which side was drawn, key by key, with the share as its probability. So a key is one unit, however many requests it
sends: they share one luck, and nothing is assumed of what clients ask for, when, or how it changes over the day. At one look:

- Failures. A unit's share of failed requests, divided by the probability of its side and signed by it, has the rise of the
  failure rate as its expectation whatever the unit is. A gambler bets against "the mean rise is at most the bound" as in
  registry.gate_statistics; the wealth is an e-value, and reaches 1 / a with probability a at most (Markov).
- Latency. The canary's times are divided by the bound on the ratio. If they are then no longer than the champion's, which keys
  are on which side says nothing about the ranks: a randomization test on the sum of ranks, one-sided, of each key's mean time.

Look j of a process may err with alpha / (j (j + 1)), a third of it for each of the three tests: all looks together with alpha.
A mirrored request is a pair: its difference is the unit, and only failures are tested, since a shadow's times are not a client's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from registry.canary_chain import Bounds
from registry.gate_statistics import log_wealth

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_STAKES: Floats = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.95])
# Ranks of fewer keys than this on a side are left alone: the normal tail is not yet the safe side of theirs.
MIN_RANKED = 8


@dataclass
class Unit:
    """What one key has seen in a period. `differences` sums the mirror's failures minus the champion's."""

    on_canary: bool
    requests: int = 0
    failures: int = 0
    differences: int = 0
    first_token_s: float = 0.0
    first_tokens: int = 0
    token_s: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Finding:
    """One test at one look. `evidence` of `needed` or more refutes that the canary is within its bound; both are log10(1 / p)."""

    of: str
    canary: float
    champion: float
    evidence: float
    needed: float

    @property
    def is_beyond(self) -> bool:
        return self.evidence >= self.needed


@dataclass
class Period:
    """The requests that are compared: both sides over the same time."""

    units: dict[bytes, Unit] = field(default_factory=dict)
    requests: int = 0
    canary_requests: int = 0

    def unit(self, key: bytes, on_canary: bool) -> Unit:
        """The key's, one request more."""
        unit = self.units.setdefault(key, Unit(on_canary))
        unit.requests += 1
        self.requests += 1
        self.canary_requests += on_canary
        return unit

    def findings(self, share: float, bounds: Bounds, alpha: float) -> tuple[Finding, ...]:
        """All three tests, each at a third of alpha; none before the canary has as many requests as the bounds ask for."""
        if self.canary_requests < bounds.min_requests:
            return ()
        units = list(self.units.values())
        on_canary: Bools = np.array([unit.on_canary for unit in units])
        failed: Floats = np.array([unit.failures / unit.requests for unit in units])
        needed = math.log10(3 / alpha)
        evidence = log_evidence_of_rise(on_canary, failed, share, bounds.max_error_rate_rise) / math.log(10)
        found = [Finding("error rate", _mean(failed[on_canary]), _mean(failed[~on_canary]), evidence, needed)]
        for of, times in (
            ("time to first token", [(one.on_canary, one.first_token_s, one.first_tokens) for one in units]),
            ("time per token", [(one.on_canary, one.token_s, one.tokens) for one in units]),
        ):
            canary = np.array([total / count for side, total, count in times if side and count])
            champion = np.array([total / count for side, total, count in times if not side and count])
            p = p_value_of_slower(canary, champion, bounds.max_latency_ratio)
            found.append(Finding(of, _mean(canary), _mean(champion), -math.log10(p), needed))
        return tuple(found)

    def paired_findings(self, bounds: Bounds, alpha: float) -> tuple[Finding, ...]:
        """Of mirrored requests."""
        if self.canary_requests < bounds.min_requests:
            return ()
        units = list(self.units.values())
        differences: Floats = np.array([unit.differences / unit.requests for unit in units])
        failed: Floats = np.array([unit.failures / unit.requests for unit in units])
        evidence = log_wealth(differences, bounds.max_error_rate_rise) / math.log(10)
        return (Finding("error rate", _mean(failed), _mean(failed - differences), evidence, -math.log10(alpha)),)


def spent(alpha: float, look: int) -> float:
    """What look number `look`, from 1, may err with: all looks together with alpha."""
    return alpha / (look * (look + 1))


def log_evidence_of_rise(on_canary: Bools, failed: Floats, share: float, rise: float) -> float:
    """Natural log of an e-value against "the failure rate rises by at most `rise`"; `failed` is in [0, 1], one a key.

    `share` is the probability with which each key was drawn, in (0, 1).
    """
    signed = np.where(on_canary, failed / share, -failed / (1 - share))
    floor = 1 / (1 - share)  # the most that one unit can speak for the canary
    growth = np.log1p(_STAKES[:, None] * ((signed[None, :] + floor) / (rise + floor) - 1)).sum(axis=1)
    return float(np.logaddexp.reduce(growth) - np.log(len(_STAKES)))


def p_value_of_slower(canary: Floats, champion: Floats, ratio: float) -> float:
    """That keys drawn at random would rank this high, were the canary's times at most `ratio` times the champion's; 1 for few."""
    if min(len(canary), len(champion)) < MIN_RANKED:
        return 1.0
    pooled = np.concatenate([canary / ratio, champion])
    _, inverse, ties = np.unique(pooled, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    total, among = len(pooled), len(canary)
    expected = among * (total + 1) / 2
    variance = among * (total - among) / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = (float(ranks[:among].sum()) - expected - 0.5) / math.sqrt(variance)
    return max(0.5 * math.erfc(z / math.sqrt(2)), 1e-300)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan
