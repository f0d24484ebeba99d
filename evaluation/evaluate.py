"""Evaluation: planned measures read on backbone and adapter, and what changed between the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.errors import PromptTooLong
from evaluation.admission import chance_level
from evaluation.base_cache import BaseCache
from evaluation.bootstrap import FEW_CLUSTERS
from evaluation.errors import DataError, JudgeUnavailable, MissingPackage
from evaluation.measure import Measure, Pairing, Readings, Summarising
from evaluation.measures.generation import Generation, write_all
from evaluation.power import smallest_detectable_change
from evaluation.significance import holm, permutation_p_value
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example, Task
from evaluation.tasks.generated import draws_groups

Role = Literal["domain", "protected", "report", "written"]  # written: the domain under a policy, and without it
T = TypeVar("T")
LEAST_PAIRED = 8  # items, where some are not measurable
UNKNOWN = PairedChange(math.nan, math.nan, math.nan, math.nan, 0, 0, 0.95, ())


@dataclass(frozen=True)
class Planned:
    """One measure on one task's items, and what its change is used for."""

    measure: Measure
    task: Task
    examples: Sequence[Example]
    role: Role


class Paired(Protocol):
    """Two readings of the same items, and what changed between them."""

    @property
    def base(self) -> Readings: ...

    @property
    def adapted(self) -> Readings: ...

    @property
    def change(self) -> PairedChange: ...

    @property
    def not_measurable(self) -> str: ...

    @property
    def summary(self) -> Mapping[str, float | None]: ...


def told(row: Paired) -> dict[str, Any]:
    """What every pair of readings tells; a number that is not defined is None."""
    base, adapted = means_of(row)
    numbers = {"base": base, "adapted": adapted, "change": row.change.mean}
    numbers |= {"low": row.change.low, "high": row.change.high, "stderr": row.change.stderr}
    return {
        "measure": row.adapted.measure,
        "unit": row.adapted.unit,
        "task": row.adapted.task,
        "not_measurable": row.not_measurable or None,
        **{name: _defined(value) for name, value in numbers.items()},
        "n": row.change.n,
        "tokens": row.base.tokens + row.adapted.tokens,
        "items": paired_items(row.base, row.adapted),
    }


def means_of(row: Paired) -> tuple[float, float]:
    """Of backbone and adapted, over the items that the change is of, so that they differ by it.

    Where nothing is measurable there is no such item, and each side's mean is over its own.
    """
    if row.not_measurable:
        return row.base.mean, row.adapted.mean
    both = _both(row.base, row.adapted)
    base, adapted = (sum(readings.values[i] for i in both) / len(both) for readings in (row.base, row.adapted))
    return base, adapted


@dataclass(frozen=True)
class Row:
    """`change` is over the items that are measurable on both sides; `not_measurable` says why it is of no item at all."""

    planned: Planned
    base: Readings
    adapted: Readings
    change: PairedChange
    not_measurable: str = ""

    @property
    def unit(self) -> str:
        return self.adapted.unit

    @property
    def summary(self) -> Mapping[str, float | None]:
        """What the measure says beside the change; empty for most."""
        measure, both = self.planned.measure, self.base.parts and self.adapted.parts
        return measure.summary(self.base, self.adapted) if both and isinstance(measure, Summarising) else {}

    @property
    def smallest_detectable(self) -> float:
        """How large a change may have been overlooked: what such items show with a power of 80 %; NaN where nothing is known."""
        return smallest_detectable_change(self.change)

    @property
    def p_value_of_loss(self) -> float:
        """Of the paired permutation test, one-sided; 1 where nothing is measurable.

        The signs of whole clusters flip together, or of items where there are few fixed templates, as in the interval.
        """
        both = _both(self.base, self.adapted)
        if self.not_measurable:
            return 1.0
        before, after = ([values[i] for i in both] for values in (self.base.values, self.adapted.values))
        clusters = [self.base.clusters[i] for i in both]
        templates = not draws_groups(self.planned.task, self.base.clusters) and len(set(clusters)) < FEW_CLUSTERS
        return permutation_p_value(before, after, [str(i) for i in both] if templates else clusters, "less")

    def as_dict(self) -> dict[str, Any]:
        """With both sides' values of every item, None where it is not measurable; undefined means are left out."""

        def means(readings: Readings) -> dict[str, float]:
            found = {name: readings.part_mean(name) for name in readings.parts if not name.startswith("_")}
            return {name: value for name, value in found.items() if not math.isnan(value)}

        return {
            **told(self),
            "role": self.planned.role,
            "smallest_detectable": _defined(self.smallest_detectable),
            "chance": chance_level(self.planned.measure, self.planned.task, self.planned.examples),
            "base_parts": means(self.base),
            "adapted_parts": means(self.adapted),
            "summary": dict(self.summary),
        }


@dataclass(frozen=True)
class Evaluation:
    rows: tuple[Row, ...]

    @property
    def domain(self) -> Row:
        """The first row of role domain."""
        return next(row for row in self.rows if row.planned.role == "domain")

    @property
    def retention(self) -> Mapping[str, Row]:
        """The protected rows, by task."""
        return {row.planned.task.name: row for row in self.rows if row.planned.role == "protected"}

    @property
    def losses(self) -> Mapping[str, float]:
        """By protected task, the p-value of a loss, adjusted for their number (Holm): at most 0.05 is a claim of harm."""
        return holm({name: row.p_value_of_loss for name, row in self.retention.items()})

    def as_dict(self) -> dict[str, Any]:
        return {"p_values_of_loss": dict(self.losses), "rows": [row.as_dict() for row in self.rows]}


def evaluate(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    plan: Sequence[Planned],
    cache: BaseCache | None = None,
    on_read: Callable[[Planned], None] = lambda planned: None,
    adapted_cache: BaseCache | None = None,
    beside: str | None = None,
) -> Evaluation:
    """Every planned measure under backbone (or the profile `beside`) and profile, on the same items, prompts and decoding.

    A reading is stored as soon as it is made, so that an evaluation that was cut off goes on from there. `on_read` hears of each,
    and of no stored one.
    """
    base = read_plan(engine, backbone, beside, plan, cache, on_read)
    adapted = base if profile == beside else read_plan(engine, backbone, profile, plan, adapted_cache, on_read)
    return Evaluation(tuple(compared(*parts) for parts in zip(plan, base, adapted, strict=True)))


def read_plan(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    plan: Sequence[Planned],
    cache: BaseCache | None = None,
    on_read: Callable[[Planned], None] = lambda planned: None,
) -> list[Readings]:
    """Every planned measure under one profile, what the cache does not have; all that is written goes into shared batches."""
    stored = [cache.stored(p.measure, backbone, p.task, p.examples) if cache else None for p in plan]
    found = {index: readings for index, readings in enumerate(stored) if readings is not None}
    left = [index for index in range(len(plan)) if index not in found]

    def keep(index: int, readings: Readings) -> None:
        found[index] = readings
        if cache:
            cache.store(readings, plan[index].measure, backbone, plan[index].task, plan[index].examples)
        on_read(plan[index])

    asked = [
        (index, (measure, plan[index].task, plan[index].examples))
        for index in left
        if isinstance(measure := plan[index].measure, Generation)
    ]
    try:
        together = write_all(engine, backbone, profile, [one for _, one in asked])
    except (DataError, PromptTooLong):
        asked, together = [], []  # one of them: each is read by itself, so that only that one is lost
    for (index, _), readings in zip(asked, together, strict=True):
        keep(index, readings)
    for index in left:
        if index not in found:
            before, p = engine.stats().forward_tokens, plan[index]
            try:
                readings = p.measure.read(engine, backbone, profile, p.task, p.examples)
            except (JudgeUnavailable, MissingPackage):
                raise
            except (DataError, PromptTooLong) as error:
                if p.role != "report":
                    raise
                # What only stands in a report is no reason to lose the rest of it.
                readings = Readings.of(p.measure, p.task, p.examples, [math.nan] * len(p.examples), reason=str(error))
            keep(index, replace(readings, tokens=engine.stats().forward_tokens - before))
    return [found[index] for index in range(len(plan))]


def compared(planned: Planned, base: Readings, adapted: Readings) -> Row:
    """Two readings of the same items, paired."""
    if isinstance(planned.measure, Pairing):
        adapted = planned.measure.beside(base, adapted)
    drawn = draws_groups(planned.task, base.clusters)
    return Row(planned, base, adapted, *change_between(base, adapted, drawn))


def change_between(base: Readings, adapted: Readings, drawn_clusters: bool = False) -> tuple[PairedChange, str]:
    """Over the items that are measurable on both sides; why nothing is known, where that is so."""
    both = _both(base, adapted)
    reason = base.reason or adapted.reason
    if not reason and len(both) < len(base.values) and len(both) < LEAST_PAIRED:
        reason = f"{len(both)} of {len(base.values)} items are measurable on both sides, not {LEAST_PAIRED}"
    if reason:
        return UNKNOWN, reason

    def chosen(values: Sequence[T]) -> list[T]:
        return [values[i] for i in both]

    sides = (chosen(base.values), chosen(adapted.values), chosen(base.clusters))
    return paired_change(*sides, drawn_clusters=drawn_clusters), ""


def _both(base: Readings, adapted: Readings) -> list[int]:
    """The items that are measurable on both sides."""
    return [i for i, pair in enumerate(zip(base.values, adapted.values, strict=True)) if not any(map(math.isnan, pair))]


def paired_items(base: Readings, adapted: Readings) -> dict[str, list[str] | list[float | None]]:
    """What the change was made of, for whoever computes with it: items of one cluster are not independent."""
    sides = {"base": base, "adapted": adapted}
    values = {side: [_defined(value) for value in readings.values] for side, readings in sides.items()}
    return {"ids": list(base.item_ids), "clusters": list(base.clusters), **values}


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
