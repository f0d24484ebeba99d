"""What an evaluation has still to read, what that will cost, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from service.clock import lasting
from service.commands.subject import LOADED, Subject
from service.pace import Pace

if TYPE_CHECKING:
    from evaluation.evaluate import Planned
    from evaluation.forecast import Forecast


@dataclass
class Workload:
    """`unread` has a planned measure once for each side, backbone and adapter, that holds no reading of it."""

    unread: Sequence[Planned]
    num_readings: int
    forecast: Forecast
    pace: Pace = field(default_factory=Pace)
    _read_s: float = 0.0  # of what was forecast

    @classmethod
    def of(cls, subject: Subject, plan: Sequence[Planned]) -> Workload:
        """Tries what is not read yet on a few items; that takes a hundredth of the whole, or a few seconds."""
        from evaluation.forecast import TRIED, forecast

        sides = (subject.cache, subject.adapted_cache)
        unread = [p for side in sides for p in plan if side.stored(p.measure, subject.backbone, p.task, p.examples) is None]
        if unread:
            named = len({planned.measure.name for planned in unread})
            print(f"trying {named} measures on {TRIED} items each, to tell how long the whole will take", file=sys.stderr)
        tried = partial(Pace(), "measures tried")
        return cls(unread, len(sides) * len(plan), forecast(subject.engine, subject.backbone, LOADED, unread, tried))

    def __str__(self) -> str:
        known = self.num_readings - len(self.unread)
        if not self.unread:
            return f"all {self.num_readings} readings are stored, nothing is read"
        cost = self.forecast.all(self.unread)
        return (
            f"{len(self.unread)} readings to make ({known} are stored), about {cost.tokens / 1e6:.2g} million tokens through a "
            f"forward and {lasting(cost.seconds)}. Ctrl-C stops it; the same command goes on from there."
        )

    def on_read(self, planned: Planned) -> None:
        whole = self.forecast.all(self.unread).seconds
        if not self._read_s:
            self.pace("per cent read", 0, 100)
        self._read_s += self.forecast.of(planned).seconds
        self.pace("per cent read", round(100 * self._read_s / whole) if whole else 100, 100)
