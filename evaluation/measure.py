"""A measure: one way of looking at reasoning, read per item, so that every reading can be paired with the backbone's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.task import Example, Task


@dataclass(frozen=True)
class Readings:
    """One value an item, in the order of the items. `parts` hold what the value was made of, item by item.

    A part whose name begins with _ has no mean worth telling: it is there for the measure's summary.

    NaN says that this item cannot show what is measured under this profile (an answer that is wrong with its whole trace does not
    show whether it depends on it); `reason` says why none of them can, where that is so. Neither is ever read as kept or as lost.
    """

    measure: str
    task: str
    item_ids: tuple[str, ...]
    values: tuple[float, ...]
    clusters: tuple[str, ...]  # items of one cluster are not independent
    unit: str
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    reason: str = ""  # why nothing is measurable here; empty when something is
    tokens: int = 0  # that went through a forward for it

    @classmethod
    def of(
        cls,
        measure: Measure,
        task: Task,
        examples: Sequence[Example],
        values: Iterable[float],
        parts: Mapping[str, Iterable[float]] | None = None,
        unit: str | None = None,
        reason: str = "",
    ) -> Readings:
        """What a measure read of a task's items, in the measure's unit unless the task has another."""
        return cls(
            measure.name,
            task.name,
            tuple(example.id for example in examples),
            tuple(values),
            tuple(example.group for example in examples),
            unit or measure.unit,
            {name: tuple(found) for name, found in (parts or {}).items()},
            reason,
        )

    @property
    def mean(self) -> float:
        """Over the items that are measurable; NaN when none is."""
        return _mean(self.values)

    def part_mean(self, name: str) -> float:
        return _mean(self.parts[name])


@runtime_checkable
class Measure(Protocol):
    """Higher is better. `version` changes when the definition does, so that no stored reading outlives it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def unit(self) -> str: ...

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        """Reads every item under the profile (None: the backbone)."""
        ...


@runtime_checkable
class Summarising(Measure, Protocol):
    """A measure that says more of a pair than the change of its mean."""

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """By name; None where the items leave a number undefined."""
        ...


@runtime_checkable
class Pairing(Measure, Protocol):
    """A measure that is over what the backbone can show, which a reading of the profile alone cannot know."""

    def beside(self, base: Readings, adapted: Readings) -> Readings:
        """The adapted reading over what counts on the base side."""
        ...


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else float("nan")
