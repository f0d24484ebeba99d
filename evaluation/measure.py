"""A measure: one way of looking at reasoning, read per item, so that every reading can be paired with the backbone's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.task import Example, Task


@dataclass(frozen=True)
class Readings:
    """One value an item, in the order of the items. `parts` hold what the value was made of, item by item."""

    measure: str
    task: str
    item_ids: tuple[str, ...]
    values: tuple[float, ...]
    clusters: tuple[str, ...]  # items of one cluster are not independent
    unit: str
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        measure: Measure,
        task: Task,
        examples: Sequence[Example],
        values: Iterable[float],
        parts: Mapping[str, Iterable[float]] | None = None,
        unit: str | None = None,
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
        )

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values) if self.values else float("nan")

    def part_mean(self, name: str) -> float:
        values = self.parts[name]
        return sum(values) / len(values) if values else float("nan")


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
