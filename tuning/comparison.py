"""Two adapters beside each other: their gains on the same items of the select split, which neither search nor gate reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from engine.engine import Engine
from engine.profile import Profile
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.statistics import ratio
from evaluation.tasks import task_named
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe


@dataclass(frozen=True)
class Gain:
    """Domain accuracy of the backbone and of an adapted model, and the paired change with its 95 % interval."""

    base: float
    adapted: float
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`share` is the second's gain over the first's with a 95 % interval; None where the first gained nothing."""

    items: int
    first: Gain
    second: Gain
    share: float | None
    share_low: float | None
    share_high: float | None

    def save(self, file: Path) -> None:
        write_whole(file, json.dumps(asdict(self), indent=2))

    @classmethod
    def kept(cls, file: Path) -> Comparison | None:
        """None where there is no such file, or it is damaged."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**found, "first": Gain(**found["first"]), "second": Gain(**found["second"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def compare(
    recipe: Recipe,
    engine: Engine,
    backbone: Backbone,
    first: Profile,
    second: Profile,
    items: int,
    cache: Path,
    on_read: Callable[[int], None] | None = None,
) -> Comparison:
    """`on_read` is told after each of the two."""
    domain = task_named(recipe.domain)
    plan = [Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples("select", items), "domain")]
    stored = BaseCache(cache / "base", recipe.evaluation.precision)
    rows = []
    for profile in (first, second):
        engine.load("compared", profile)
        try:
            rows.append(evaluate(engine, backbone, "compared", plan, stored).domain)
        finally:
            engine.unload("compared")
        if on_read is not None:
            on_read(len(rows))
    one, other = rows
    share = ratio(one.change.per_item, other.change.per_item, one.base.clusters) if one.change.mean > 0 else (None, None, None)
    return Comparison(len(plan[0].examples), _gain(one), _gain(other), *share)


def _gain(row: Row) -> Gain:
    return Gain(row.base.mean, row.adapted.mean, row.change.mean, row.change.low, row.change.high)
