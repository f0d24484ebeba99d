"""The soak: memory of the process that holds the engine, by requests answered, while clients ask for everything in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from benchmarks.fault_trials import Outcome, Target
from benchmarks.fault_world import Traffic, World

EVERY_S = 2.0
PARTS = 8  # of the watched time, each told by its own least memory
MiB = 2**20


@dataclass(frozen=True)
class Sample:
    at_s: float
    requests: int
    memory: int  # bytes that belong to the process alone (USS)


@dataclass(frozen=True)
class Growth:
    """Of the second half: bytes a request with a 95 % interval, and what a day at this rate would add."""

    per_request: float
    low: float
    high: float
    first: int  # bytes at the beginning of the second half
    last: int
    per_day: float
    most_per_day: float  # at the interval's upper end: what so short a soak does not rule out

    @property
    def is_bounded(self) -> bool:
        """Whether no growth is shown, or so little that a day of it is less than 5 % of the process."""
        return self.low <= 0 or self.per_day < 0.05 * self.first

    @property
    def is_ruled_out(self) -> bool:
        """Whether a growth of 5 % a day is ruled out, at 95 %."""
        return self.most_per_day < 0.05 * self.first

    def __str__(self) -> str:
        interval = f"{self.per_request:+,.0f} bytes a request [{self.low:+,.0f}, {self.high:+,.0f}]"
        said = f"5 % a day are {'' if self.is_ruled_out else 'not '}ruled out (at most {self.most_per_day / MiB:+.1f} MiB)"
        sizes = f"{self.first / MiB:.1f} to {self.last / MiB:.1f} MiB"
        return f"{interval} in the second half, {sizes}; a day of it {self.per_day / MiB:+.1f} MiB; {said}"


def growth_of(samples: Sequence[Sample]) -> Growth:
    """Least memory of each part of the second half against requests: what is freed a moment later is no growth.

    The interval is of the line's slope with the parts as units (Student's t with PARTS - 2 degrees of freedom).
    """
    from scipy.stats import linregress
    from scipy.stats import t as student

    half = samples[len(samples) // 2 :]
    if len(half) < PARTS:
        raise ValueError(f"Growth is read of {PARTS} parts, but the second half has {len(half)} samples. Soak for longer.")
    parts = [min(part, key=lambda one: one.memory) for part in _split(half)]
    requests, memory = (np.array([getattr(one, field) for one in parts], dtype=float) for field in ("requests", "memory"))
    line = linregress(requests, memory)
    reach = float(student.ppf(0.975, PARTS - 2)) * float(line.stderr)
    rate = (half[-1].requests - half[0].requests) / max(half[-1].at_s - half[0].at_s, 1e-9)
    slope = float(line.slope)
    return Growth(
        slope, slope - reach, slope + reach, int(memory[0]), int(memory[-1]), slope * rate * 86400, (slope + reach) * rate * 86400
    )


def soak(world: World, target: Target, seconds: float, on_sample: Callable[[Sample], None] = lambda one: None) -> Outcome:
    """No growth of memory and no wrong answer over so long; promotions and rollbacks go on meanwhile."""
    traffic, samples, name = Traffic(world, target.url), list[Sample](), "north"
    process, began, turn = psutil.Process(target.worker()), time.monotonic(), 0
    with traffic.flowing(threads=4):
        while time.monotonic() - began < seconds:
            time.sleep(EVERY_S)
            samples.append(Sample(time.monotonic() - began, traffic.tally.asked, process.memory_full_info().uss))
            on_sample(samples[-1])
            turn += 1
            if turn % 10 == 0:
                world.promote(name, 2)
            elif turn % 10 == 5 and turn > 10:
                world.ledger(name).rollback("the soak goes on", 1)
    growth = growth_of(samples)
    told = f"{traffic.tally.asked} requests in {seconds / 60:.0f} minutes; {growth}"
    return Outcome.of("soak", traffic, held=growth.is_bounded, told=told)


def _split(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    edges = np.linspace(0, len(samples), PARTS + 1).astype(int)
    return [samples[low:high] for low, high in zip(edges, edges[1:], strict=False)]
