"""The soak finds a leak that a day would show, and takes neither noise nor warming up for one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import PARTS, MiB, Sample, growth_of


def samples(per_request: float = 0.0, *, noise: float = 2 * MiB, warming: float = 0.0, seed: int = 0) -> list[Sample]:
    """Of a default soak: fifteen minutes of fifteen requests a second over 500 MiB, of which some are freed a moment later."""
    draw, found = np.random.default_rng(seed), []
    for number in range(450):
        memory = 500 * MiB + 30 * number * per_request + noise * draw.random() + warming * min(1.0, number / 200)
        found.append(Sample(2.0 * number, 30 * number, int(memory)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_a_few_hundred_bytes_a_request_is_found(seed: int) -> None:
    growth = growth_of(samples(300, seed=seed))
    assert not growth.is_bounded and growth.per_request == pytest.approx(300, rel=0.25)
    assert growth.per_day == pytest.approx(growth.per_request * 15 * 86400, rel=0.01)


@pytest.mark.parametrize("noise", [0.1 * MiB, 2 * MiB, 20 * MiB])
def test_memory_that_comes_and_goes_is_rarely_a_leak(noise: float) -> None:
    # By chance alone one in forty intervals lies above zero.
    taken = [not growth_of(samples(noise=noise, seed=seed)).is_bounded for seed in range(60)]
    assert sum(taken) <= 4


def test_a_soak_says_what_it_cannot_rule_out() -> None:
    assert growth_of(samples(noise=0.1 * MiB)).is_ruled_out and "are ruled out" in str(growth_of(samples(noise=0.1 * MiB)))
    noisy = growth_of(samples(noise=20 * MiB))
    assert not noisy.is_ruled_out and "are not ruled out" in str(noisy)
    assert noisy.most_per_day == pytest.approx(noisy.high * 15 * 86400, rel=0.01)


def test_what_is_taken_while_it_warms_up_is_no_leak() -> None:
    assert growth_of(samples(warming=100 * MiB)).is_bounded


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match=f"{PARTS} parts"):
        growth_of(samples()[:10])
