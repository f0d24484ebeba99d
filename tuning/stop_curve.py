"""What a fit was read to be at its checkpoints: few items, at full scale and, where that loses too much, at the smallest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CURVE_KEY = "curve"  # the user attribute of a trial


@dataclass(frozen=True)
class FamilyChange:
    """Adapted minus backbone in margins of the family, with the ends of its 95 % interval: 0 is no loss, -1 the margin."""

    mean: float
    low: float
    high: float
    stderr: float


@dataclass(frozen=True)
class Point:
    """The live adapter at one scale, beside the backbone on the same items of the search split."""

    scale: float
    gain: float  # of the domain, in shares
    gain_stderr: float
    families: Mapping[str, FamilyChange]

    @property
    def retention(self) -> float:
        """Capped, in margins: the trial's second objective, on fewer items."""
        return sum(min(0.0, change.mean) for change in self.families.values()) / max(1, len(self.families))

    @property
    def retention_stderr(self) -> float:
        """As if no family were capped, which makes it larger, never smaller."""
        return math.hypot(*(change.stderr for change in self.families.values())) / max(1, len(self.families))

    @property
    def is_tolerable(self) -> bool:
        """Whether no family lost more than its margin, as far as so few items show."""
        return all(change.mean >= -1 for change in self.families.values())

    @property
    def worst(self) -> tuple[str, FamilyChange]:
        return min(self.families.items(), key=lambda item: item[1].mean)


@dataclass(frozen=True)
class FitReading:
    """At one checkpoint; the points are by rising scale. What is read on other items is not compared.

    `smallest` is the study's smallest scale. It is read where the largest is not tolerable, and is the first point then.
    """

    checkpoint: float  # the share of the steps, as the recipe names it
    items: tuple[int, int]  # of the domain and of each family
    points: tuple[Point, ...]
    smallest: float
    seconds: float

    @property
    def least(self) -> Point | None:
        """At the smallest scale; None where it was not read."""
        return self.points[0] if self.points[0].scale == self.smallest else None

    @property
    def chosen(self) -> Point:
        """The largest scale that is tolerable, else the smallest: what the trial would be if it ended here."""
        return next((point for point in reversed(self.points) if point.is_tolerable), self.points[0])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def matches(self, other: FitReading) -> bool:
        """Whether the two can be compared."""
        return self.checkpoint == other.checkpoint and self.items == other.items

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> FitReading:
        points = [
            Point(
                float(point["scale"]),
                float(point["gain"]),
                float(point["gain_stderr"]),
                {name: FamilyChange(**change) for name, change in point["families"].items()},
            )
            for point in told["points"]
        ]
        domain_items, family_items = told["items"]
        items, smallest = (int(domain_items), int(family_items)), float(told["smallest"])
        return cls(float(told["checkpoint"]), items, tuple(points), smallest, float(told["seconds"]))

    @property
    def told(self) -> dict[str, Any]:
        """As much of a score as it gives, for whoever shows both."""
        shown = self.chosen
        lost = {family: -change.mean - 1.0 for family, change in shown.families.items()}
        return {"chosen": {"domain_gain": shown.gain, "scale": shown.scale}, "retention": shown.retention, "constraints": lost}

    def __str__(self) -> str:
        shown = self.chosen
        family, change = shown.worst
        return (
            f"after {self.checkpoint:.0%} of the fit: gain {shown.gain:+.3f} at scale {shown.scale:g}, retention "
            f"{shown.retention:+.2f} margins, worst {family} {change.mean:+.1f}"
        )


def curve_of(attributes: Mapping[str, Any]) -> list[FitReading]:
    """The readings among the user attributes of a trial; empty where it was not read."""
    stored: Sequence[Mapping[str, Any]] = attributes.get(CURVE_KEY, ())
    return [FitReading.of(told) for told in stored]
