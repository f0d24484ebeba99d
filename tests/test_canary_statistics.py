"""The tests behind a rollback: their level over all looks without a difference, and what they catch within how many requests."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.canary import STRICT, Traffic, rolled_back_after
from registry.canary_chain import Bounds
from registry.canary_statistics import Period, log_evidence_of_rise, p_value_of_slower, spent


@pytest.mark.parametrize("users", [None, 60])
def test_a_canary_like_its_champion_is_rolled_back_no_oftener_than_alpha(users: int | None) -> None:
    """At the very edge of its bounds: no rise and no ratio are tolerated. 60 runs at 0.1 exceed 12 with probability 0.004."""
    traffic = Traffic((0.02, 0.02), users=users)
    assert sum(rolled_back_after(traffic, seed, 0.2, STRICT, 600) is not None for seed in range(60)) <= 12


def test_a_slower_canary_at_its_bound_is_left_alone() -> None:
    edge = Bounds(max_latency_ratio=1.5, alpha=0.1)
    assert sum(rolled_back_after(Traffic(slower=1.5), seed, 0.2, edge, 600) is not None for seed in range(30)) <= 8


@pytest.mark.parametrize(
    ("traffic", "share", "within"),
    [
        (Traffic((0.01, 1.0)), 0.1, 350),
        (Traffic((0.01, 1.0)), 0.5, 100),
        (Traffic(slower=2), 0.2, 500),
        (Traffic((0.02, 0.17)), 0.5, 1600),
    ],
)
def test_a_worse_canary_is_caught_within_so_many_requests(traffic: Traffic, share: float, within: int) -> None:
    found = [rolled_back_after(traffic, seed, share, Bounds(), within) for seed in range(20)]
    assert sum(at is not None for at in found) >= 19, found


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


def test_the_p_value_of_keys_that_were_drawn_at_random_is_one() -> None:
    """At 0.05 and 600 draws of 15 keys among 60 with times of their own, more than 45 have a probability of 0.004."""
    rng = np.random.default_rng(0)
    times = [rng.permutation(rng.lognormal(0, 1, 60)) for _ in range(600)]
    assert sum(p_value_of_slower(drawn[:15], drawn[15:], 1.0) <= 0.05 for drawn in times) <= 45


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
