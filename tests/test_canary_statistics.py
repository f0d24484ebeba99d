"""The tests behind a rollback: their level over all looks without a difference, and what they catch within how many requests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from registry.canary_chain import Bounds
from registry.canary_statistics import Period, log_evidence_of_rise, p_value_of_slower, spent

Latency = Callable[[np.random.Generator, bool, int], float]
REQUESTS, ALPHA = 1200, 0.1


def first_alarm(
    seed: int,
    *,
    failures: tuple[float, float] = (0.02, 0.02),
    slower: float = 1.0,
    users: int | None = None,
    share: float = 0.2,
    bounds: Bounds | None = None,
) -> int | None:
    """After how many requests a simulated canary is found beyond its bounds; None when it never is.

    `failures` are the champion's and the canary's. With `users` each has a failure rate and a speed of its own, and stays on
    its side; half of the requests come from a tenth of them.
    """
    rng, bounds, period, look, due = np.random.default_rng(seed), bounds or Bounds(alpha=ALPHA), Period(), 0, 8
    bad = rng.random(users or 1) < 0.15
    pace = np.exp(rng.normal(0, 1, users or 1))
    for number in range(1, REQUESTS + 1):
        user = number
        if users is not None:
            user = int(rng.integers(users // 10 if rng.random() < 0.5 else users))
        digest = hashlib.sha256(f"{seed}/{user}".encode()).digest()
        on_canary = int.from_bytes(digest[:8], "big") / 2**64 < share
        unit = period.unit(digest, on_canary)
        rate = failures[on_canary] + (0.3 * bool(bad[user]) if users is not None else 0)
        unit.failures += bool(rng.random() < rate)
        unit.token_s += float((pace[user] if users is not None else 1) * rng.lognormal(0, 0.5) * (slower if on_canary else 1))
        unit.tokens += 1
        if number >= due:
            look, due = look + 1, math.ceil(due * 1.5)
            if any(finding.is_beyond for finding in period.findings(share, bounds, spent(bounds.alpha, look))):
                return number
    return None


STRICT = Bounds(max_error_rate_rise=0, max_latency_ratio=1, min_requests=1, alpha=ALPHA)


@pytest.mark.parametrize("users", [None, 60])
def test_a_canary_like_its_champion_is_rolled_back_no_oftener_than_alpha(users: int | None) -> None:
    """At the very edge of its bounds: no rise and no ratio are tolerated. 120 runs at 0.1 exceed 20 with probability 0.007."""
    alarms = sum(first_alarm(seed, users=users, bounds=STRICT) is not None for seed in range(120))
    assert alarms <= 20


def test_a_slower_canary_at_its_bound_is_left_alone() -> None:
    edge = Bounds(max_latency_ratio=1.5, alpha=ALPHA)
    assert sum(first_alarm(seed, slower=1.5, bounds=edge) is not None for seed in range(40)) <= 9


@pytest.mark.parametrize(("share", "within"), [(0.1, 250), (0.5, 100)])
def test_a_canary_that_fails_everything_is_caught_at_once(share: float, within: int) -> None:
    found = [first_alarm(seed, failures=(0.01, 1.0), share=share, bounds=Bounds(min_requests=10)) for seed in range(20)]
    assert all(at is not None and at <= within for at in found), found


def test_a_canary_of_twice_the_time_is_caught_within_six_hundred_requests() -> None:
    found = [first_alarm(seed, slower=2.0) for seed in range(20)]
    assert sum(at is not None and at <= 600 for at in found) >= 18, found


def test_a_rise_of_fifteen_points_is_caught_within_twelve_hundred_requests() -> None:
    found = [first_alarm(seed, failures=(0.02, 0.17)) for seed in range(20)]
    assert sum(at is not None for at in found) >= 18, found


def test_one_user_that_always_fails_does_not_speak_for_the_release() -> None:
    period = Period()
    for number in range(400):
        unit = period.unit(b"one" if number % 4 == 0 else str(number).encode(), number % 4 == 0)
        unit.failures += number % 4 == 0
    failing = period.findings(0.25, Bounds(), 0.01)
    assert not any(finding.is_beyond for finding in failing)
    assert failing[0].canary == 1.0 and failing[0].evidence < 1


def test_nothing_is_found_before_the_canary_has_its_requests() -> None:
    period = Period()
    for number in range(9):
        period.unit(str(number).encode(), True).failures += 1
    assert period.findings(0.1, Bounds(min_requests=10), 0.01) == ()
    period.unit(b"ten", True).failures += 1
    assert period.findings(0.1, Bounds(min_requests=10), 0.01)[0].is_beyond


def test_the_expected_wealth_of_an_unchanged_failure_rate_is_one() -> None:
    """Over every way in which six keys can fall, weighed by its probability: exactly 1 for whatever each of them would see."""
    failed, share, expected = np.array([1.0, 0.0, 0.5, 1.0, 0.25, 0.0]), 0.3, 0.0
    for sides in range(2**6):
        on_canary = np.array([bool(sides >> bit & 1) for bit in range(6)])
        weight = math.prod(share if side else 1 - share for side in on_canary)
        expected += weight * math.exp(log_evidence_of_rise(on_canary, failed, share, 0.0))
    assert expected == pytest.approx(1.0)


def test_ranks_speak_only_beyond_the_ratio() -> None:
    champion = np.linspace(1.0, 2.0, 40)
    canary = np.linspace(1.4, 2.8, 20)
    assert p_value_of_slower(canary, champion, 1.0) < 1e-3 < 0.2 < p_value_of_slower(canary, champion, 1.4)
    assert p_value_of_slower(canary[:7], champion, 1.0) == 1.0
    assert p_value_of_slower(np.ones(20), np.ones(40), 1.0) == 1.0


def test_all_looks_together_spend_alpha() -> None:
    assert sum(spent(0.01, look) for look in range(1, 100_000)) == pytest.approx(0.01, rel=1e-4)


def test_a_mirror_is_compared_pair_by_pair() -> None:
    def mirrored(shadow: float, champion: float) -> bool:
        rng, period = np.random.default_rng(0), Period()
        for number in range(300):
            unit, failed = period.unit(str(number).encode(), True), bool(rng.random() < shadow)
            unit.failures += failed
            unit.differences += failed - bool(rng.random() < champion)
        return any(finding.is_beyond for finding in period.paired_findings(Bounds(), 0.001))

    assert mirrored(0.3, 0.02) and not mirrored(0.3, 0.3)
