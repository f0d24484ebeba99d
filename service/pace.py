"""How far a long command is, and how long it will still take: one line now and then, on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from service.clock import clock

_EVERY_S = 10.0


@dataclass
class Pace:
    """The time left is of what is being counted, by the pace since this command began to count it."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    now: Callable[[], float] = time.monotonic
    _started: dict[str, tuple[float, int]] = field(default_factory=dict)  # by what is counted: since when, from which count
    _said: float = float("-inf")

    def __call__(self, what: str, done: int, of: int) -> None:
        now = self.now()
        since, first = self._started.setdefault(what, (now, done))
        if now - self._said < _EVERY_S and done < of:
            return
        self._said = now
        spent, made = now - since, done - first
        left = f", about {clock(spent / made * (of - done))} left" if made and done < of else ""
        self.out.write(f"{what}: {done} of {of}{left}\n")
        self.out.flush()


class BadSeconds(ValueError):
    """A span of time that no clock reaches, or that is over before it begins."""


def checked_seconds(seconds: float | None, option: str = "--time-budget-s") -> float | None:
    """The seconds themselves, or BadSeconds. NaN is never reached, since no time is later than it."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise BadSeconds(f"{option} is a number of seconds above 0, but got {seconds:g}. Leave it out, or give a finite number.")
    return seconds


@dataclass(frozen=True)
class Budget:
    """Seconds after which nothing new is begun; None is without end."""

    seconds: float | None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        checked_seconds(self.seconds)

    def is_spent(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.started >= self.seconds
