"""Layer knock-out and scale sweep: what a fitted adapter gains and loses in each part of the depth, without another fit.

Knock-out: the adapter is off in one group of layers and whole in all others, and every task is read again on the same items. It
says what those layers do in this adapter, and nothing of other adapters: where knowledge or reasoning sits is measured here and
not assumed. Sweep: the adapter's strength in one band, or in all layers, goes from 0 to 1; each point is an adapter that could be
released (post-hoc interpolation, after WiSE-FT, Wortsman et al., arXiv 2109.01903). Soft thoughts act in no layer and stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from scipy import stats

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import layers_by_band
from engine.engine import Engine
from engine.profile import Profile
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, Row, compared, evaluate, read_plan
from evaluation.measure import Readings
from evaluation.retention import DEFAULT_MARGINS, capped_retention
from evaluation.statistics import PairedChange

ALPHAS, FEW_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0)
NO_LAYERS = "the profile acts in no layer (soft thoughts change the prompt alone), so that there is nothing to knock out"
_PILOT = 2  # items a task that tell how long one takes
_HELD = "held-back"  # the name under which the engine holds what is read


@dataclass(frozen=True)
class Layers:
    """A contiguous group of decoder layers, counted from 0, the lowest."""

    name: str
    first: int
    end: int

    def factors(self, num_layers: int, alpha: float) -> tuple[float, ...]:
        """Alpha inside, 1 elsewhere."""
        return tuple(alpha if self.first <= layer < self.end else 1.0 for layer in range(num_layers))


def grouped(num_layers: int, num_groups: int) -> tuple[Layers, ...]:
    """Groups of sizes that differ by at most one, lowest first."""
    if not 1 <= num_groups <= num_layers:
        raise ValueError(f"A group holds one layer or more, but got {num_groups} groups of {num_layers} layers. Ask for fewer.")
    edges = [index * num_layers // num_groups for index in range(num_groups + 1)]
    spans = zip(edges, edges[1:], strict=False)
    return tuple(Layers(f"{low}-{high - 1}" if high > low + 1 else f"{low}", low, high) for low, high in spans)


def bands(num_layers: int) -> tuple[Layers, ...]:
    """All layers, and the thirds that `LoRASpec.band` names, where they hold a layer."""
    return tuple(Layers(name, first, end) for name, (first, end) in layers_by_band(num_layers).items() if end > first)


@dataclass(frozen=True)
class Ratio:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """The adapter at strength `alpha` in some layers and whole in the others; rows in the order of the plan."""

    layers: Layers
    alpha: float
    against_backbone: tuple[Row, ...]  # what is left of the gain and of the loss
    against_whole: tuple[Row, ...]  # what holding it back changed, on the same items

    @property
    def domain(self) -> Row:
        return next(row for row in self.against_whole if row.planned.role == "domain")

    @property
    def retention(self) -> Mapping[str, Row]:
        """What holding back changed in each protected task: above 0 is regained."""
        return {row.planned.task.name: row for row in self.against_whole if row.planned.role == "protected"}

    def cost(self, family: str) -> Ratio | None:
        """Domain lost for each unit of retention regained; None unless it is shown that something is regained."""
        row = self.retention[family]
        if row.not_measurable or self.domain.not_measurable:
            return None
        return lost_per_regained(self.domain.change, row.change)

    @cached_property
    def scores(self) -> tuple[float, float]:
        """Domain gain, and the mean retention change in margins (losses alone count), against the backbone."""
        gain = next(row.change.mean for row in self.against_backbone if row.planned.role == "domain")
        kept = [row for row in self.against_backbone if row.planned.role == "protected" and not row.not_measurable]
        changes = {row.planned.task.name: row.change.mean for row in kept}
        margins = {row.planned.task.name: DEFAULT_MARGINS[row.planned.measure.unit] for row in kept}
        return gain, capped_retention(changes, margins) if kept else math.nan

    def as_dict(self) -> dict[str, Any]:
        costs = {family: self.cost(family) for family in self.retention}
        return {
            "layers": self.layers.name,
            "first": self.layers.first,
            "end": self.layers.end,
            "alpha": self.alpha,
            "against_backbone": [row.as_dict() for row in self.against_backbone],
            "against_whole": [_changed(row) for row in self.against_whole],
            "domain_lost_per_retention_regained": {
                family: [ratio.value, ratio.low, ratio.high] if ratio else None for family, ratio in costs.items()
            },
        }


@dataclass(frozen=True)
class KnockOut:
    """`whole` compares the adapter as it is with the backbone; `off` has one point a group, `sweep` one a band and alpha.

    `not_measurable` says why nothing was read at all.
    """

    whole: tuple[Row, ...]
    off: tuple[Point, ...]
    sweep: tuple[Point, ...]
    not_measurable: str = ""

    @property
    def front(self) -> tuple[Point, ...]:
        """The points of the sweep that no other beats in domain gain and in retention both."""
        return tuple(point for point in self.sweep if not any(_beats(other, point) for other in self.sweep))

    def as_dict(self) -> dict[str, Any]:
        return {
            "whole": [row.as_dict() for row in self.whole],
            "off": [point.as_dict() for point in self.off],
            "sweep": [{**point.as_dict(), "on_the_front": point in self.front} for point in self.sweep],
        }


def acts_in_layers(profile: Profile) -> bool:
    return not Stack(profile.adapters).contribution().is_empty


def num_readings(
    num_layers: int, groups: Sequence[Layers], swept: Sequence[Layers] = (), alphas: Sequence[float] = ALPHAS
) -> int:
    """How often a plan is read: once under the backbone, the adapter as it is, and each way of holding it back."""
    return 1 + len({(1.0,) * num_layers, *_wanted(num_layers, groups, swept, alphas)})


def seconds_for(
    engine: Engine,
    backbone: Backbone,
    profile: Profile,
    plan: Sequence[Planned],
    readings: int,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """About how long so many readings of the plan take, by the second of two small ones: the first warms the engine up."""
    few = [replace(planned, examples=planned.examples[:_PILOT]) for planned in plan]
    share = sum(len(planned.examples) for planned in few) / sum(len(planned.examples) for planned in plan)
    engine.load(_HELD, profile)
    try:
        read_plan(engine, backbone, _HELD, few)
        began = clock()
        read_plan(engine, backbone, _HELD, few)
        return (clock() - began) / share * readings
    finally:
        engine.unload(_HELD)


def knock_out(
    engine: Engine,
    backbone: Backbone,
    profile: Profile,
    plan: Sequence[Planned],
    groups: Sequence[Layers],
    swept: Sequence[Layers] = (),
    alphas: Sequence[float] = ALPHAS,
    cache: BaseCache | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> KnockOut:
    """Each group off, and each swept band at every alpha. The plan has one row of role domain; protected rows are retention.

    Works on every engine: a held-back adapter is an adapter. What several points have in common is read once. `on_progress` hears
    of every reading, as many as `num_readings` says, and of the beginning.
    """
    if not acts_in_layers(profile):
        return KnockOut((), (), (), NO_LAYERS)
    num_layers = len(backbone.layers)
    asked = _asked(groups, swept, alphas)
    ones, of = (1.0,) * num_layers, num_readings(num_layers, groups, swept, alphas)
    engine.load(_HELD, profile)
    try:
        on_progress(0, of)
        whole = evaluate(engine, backbone, _HELD, plan, cache).rows
        found: dict[tuple[float, ...], list[Readings]] = {ones: [row.adapted for row in whole]}
        on_progress(2, of)
        for factors in _wanted(num_layers, groups, swept, alphas):
            if factors not in found:
                engine.load(_HELD, profile.scaled_by_layer(factors))
                found[factors] = read_plan(engine, backbone, _HELD, plan)
                on_progress(1 + len(found), of)
    finally:
        engine.unload(_HELD)

    def point(layers: Layers, alpha: float) -> Point:
        readings = found[layers.factors(num_layers, alpha)]
        beside = list(zip(plan, whole, readings, strict=True))
        return Point(
            layers,
            alpha,
            tuple(compared(planned, row.base, held) for planned, row, held in beside),
            tuple(compared(planned, row.adapted, held) for planned, row, held in beside),
        )

    off, sweep = (tuple(point(*each) for each in points) for points in asked)
    return KnockOut(whole, off, sweep)


Asked = tuple[list[tuple[Layers, float]], list[tuple[Layers, float]]]


def _asked(groups: Sequence[Layers], swept: Sequence[Layers], alphas: Sequence[float]) -> Asked:
    return [(group, 0.0) for group in groups], [(band, alpha) for band in swept for alpha in alphas]


def _wanted(
    num_layers: int, groups: Sequence[Layers], swept: Sequence[Layers], alphas: Sequence[float]
) -> dict[tuple[float, ...], None]:
    """The factors of every layer, each combination once."""
    return dict.fromkeys(
        layers.factors(num_layers, alpha) for points in _asked(groups, swept, alphas) for layers, alpha in points
    )


def lost_per_regained(domain: PairedChange, family: PairedChange) -> Ratio | None:
    """Minus the domain's change over the family's, with the interval of Fieller (1954) for two means of other items.

    None where the family's change is not shown to be above 0, so that there is nothing to divide by, and where the domain's items
    show no spread.
    """
    z = float(stats.norm.ppf((1 + family.confidence) / 2))
    if not family.low > 0 or not z * family.stderr < family.mean or not domain.stderr > 0:
        return None
    value, g = -domain.mean / family.mean, (z * family.stderr / family.mean) ** 2
    half = z / family.mean * math.sqrt(domain.stderr**2 * (1 - g) + value**2 * family.stderr**2)
    return Ratio(value, (value - half) / (1 - g), (value + half) / (1 - g))


def _beats(one: Point, other: Point) -> bool:
    """At least as good in both, better in one."""
    return one.scores != other.scores and all(ours >= theirs for ours, theirs in zip(one.scores, other.scores, strict=True))


def _changed(row: Row) -> dict[str, Any]:
    """Without means: the first side is the whole adapter here, not the backbone."""
    kept = ("measure", "unit", "task", "role", "not_measurable", "change", "low", "high", "stderr", "n")
    return {name: value for name, value in row.as_dict().items() if name in kept}
