"""Arms of a controlled comparison: one recipe fitted on differently prepared rows, several seeds each, read on the same items.

An arm that is read goes into a journal at once: a comparison that was stopped goes on with the arms that are left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from pydantic import JsonValue

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from engine.engine import Engine
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import LEAST_PAIRED, UNKNOWN, Planned, evaluate
from evaluation.measure import Readings
from evaluation.statistics import PairedChange, change_over_seeds, paired_change
from evaluation.task import Example
from tuning.ground import Ground, new_adapters
from tuning.journal import Journal, alone_in
from tuning.laid_out import fitted_on
from tuning.methods.method import MethodSpec
from tuning.recipe import Recipe

BACKBONE, PLACEHOLDER = "backbone", "placeholder"  # what nothing was fitted for: read once, it stands beside every seed
Progress = Callable[[str, int, int], None]  # (what is done, so many, of so many)


@dataclass(frozen=True)
class Arm:
    """What is fitted: these rows, by this method, under one seed of its own for batches and for the adapters' start.

    `changes` are dotted fields of the recipe in which its adapters differ. One that is not fitted is read at scale 0.
    """

    name: str
    seed: int
    examples: Sequence[Example]
    method: MethodSpec
    changes: Mapping[str, object] = field(default_factory=dict)
    is_fitted: bool = True

    def recipe(self, of: Recipe) -> Recipe:
        """That of the study, with what is the arm's own."""
        changed = of.with_values(dict(self.changes)) if self.changes else of
        adapter = changed.adapter
        seeded = {kind: getattr(adapter, kind).model_copy(update={"seed": self.seed}) for kind in ("lora", "softcot")}
        method = self.method.model_copy(update={"seed": self.seed})
        return changed.model_copy(update={"method": method, "adapter": adapter.model_copy(update=seeded)})


@dataclass(frozen=True)
class ArmReadings:
    """What one arm (or the backbone) read, by `measure/task`; per-item values in the order of the plan's items."""

    name: str
    seed: int
    values: Mapping[str, Sequence[float]]
    clusters: Mapping[str, Sequence[str]]
    part_means: Mapping[str, Mapping[str, float]]
    fit: Mapping[str, float]

    @classmethod
    def of(cls, name: str, seed: int, read: Mapping[str, Readings], fit: Mapping[str, float]) -> ArmReadings:
        return cls(
            name,
            seed,
            {key: list(found.values) for key, found in read.items()},
            {key: list(found.clusters) for key, found in read.items()},
            {key: {part: found.part_mean(part) for part in found.parts} for key, found in read.items()},
            fit,
        )


@dataclass(frozen=True)
class Contrast:
    """One arm minus another: the mean change over items and seeds, and the mean change under each seed.

    The interval covers other items and, from two seeds on, other seeds.
    """

    one: str
    other: str
    change: PairedChange
    by_seed: tuple[float, ...]

    @property
    def is_loss(self) -> bool:
        """The interval is below 0, and so is every seed."""
        return self.change.high < 0 and all(mean < 0 for mean in self.by_seed)

    @property
    def is_gain(self) -> bool:
        return self.change.low > 0 and all(mean > 0 for mean in self.by_seed)

    @property
    def spans_zero(self) -> bool:
        return self.change.low <= 0 <= self.change.high

    def as_dict(self) -> dict[str, Any]:
        known = self.change.n > 0
        numbers = {"change": self.change.mean, "low": self.change.low, "high": self.change.high}
        return {
            "one": self.one,
            "other": self.other,
            **{name: value if known else None for name, value in numbers.items()},
            "n": self.change.n,
            "num_clusters": self.change.num_clusters,
            "by_seed": list(self.by_seed),
        }


@dataclass(frozen=True)
class ArmBench:
    """Where arms are fitted and read."""

    recipe: Recipe
    backbone: Backbone
    engine: Engine
    plan: Sequence[Planned]
    cache: BaseCache
    journal: Journal

    def stored(self) -> list[ArmReadings]:
        return [ArmReadings(**entry) for entry in self.journal.entries()]

    def run(
        self,
        arms: Iterable[Arm],
        on_progress: Progress = lambda what, done, of: None,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> list[ArmReadings]:
        """The backbone and every arm, those of earlier calls among them; fewer when time ran out. The backbone comes first."""
        wanted, found = list(arms), self.stored()
        known = {(one.name, one.seed) for one in found}
        left = [arm for arm in wanted if (arm.name, arm.seed) not in known]
        for index, arm in enumerate(left, start=len(wanted) - len(left)):
            if out_of_time():
                break
            on_progress("arms fitted and read", index, len(wanted))
            base, read = self._fit_and_read(arm)
            for one in (read,) if found else (base, read):
                self.journal.append(asdict(one))
                found.append(one)
            on_progress("arms fitted and read", index + 1, len(wanted))
        return found

    def _fit_and_read(self, arm: Arm) -> tuple[ArmReadings, ArmReadings]:
        started = time.monotonic()
        recipe, told = arm.recipe(self.recipe), dict[str, float]()
        if arm.is_fitted:
            done = fitted_on(recipe, self.backbone, arm.examples)
            adapters, fit = done.adapters, done.fit
            told = {"first_loss": fit.losses[0], "last_loss": fit.losses[-1], "num_tokens": fit.num_tokens}
        else:
            adapters = new_adapters(recipe, self.backbone)
            with Stack(adapters).attach(self.backbone):
                pass  # they get their start from the backbone
        fitted = time.monotonic()
        profile = Profile(adapters)
        self.engine.load("arm", profile if arm.is_fitted else profile.scaled(0.0))
        try:
            rows = evaluate(self.engine, self.backbone, "arm", self.plan, self.cache).rows
        finally:
            self.engine.unload("arm")
        told |= {"fit_s": fitted - started, "read_s": time.monotonic() - fitted}
        base = ArmReadings.of(BACKBONE, 0, {key_of(row.planned): row.base for row in rows}, {})
        return base, ArmReadings.of(arm.name, arm.seed, {key_of(row.planned): row.adapted for row in rows}, told)


class Told(Protocol):
    """What the arms say together."""

    def as_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Told)


@dataclass(frozen=True)
class ArmStudy(Generic[T]):
    """Arms of a recipe, in a folder named by all that decides them; the same study again goes on where it stopped.

    `name` is that of the folder and of the file of what was `told`; `settings` is what decides beside recipe, rows and plan.
    """

    name: str
    recipe: Recipe
    ground: Ground
    home: Path
    arms: Sequence[Arm]
    plan: Sequence[Planned]
    told: Callable[[Sequence[ArmReadings]], T]
    settings: Mapping[str, JsonValue]

    def run(
        self, on_progress: Progress = lambda what, done, of: None, out_of_time: Callable[[], bool] = lambda: False
    ) -> T | None:
        """None when time ran out before every arm was read."""
        backbone, precision = self.ground.backbone, self.recipe.evaluation.precision
        engine = TorchEngine(backbone, max_rows=64, precision=precision)
        cache = BaseCache(self.home / "cache" / "base", precision)
        bench = ArmBench(self.recipe, backbone, engine, self.plan, cache, Journal(self.directory / "arms.jsonl"))
        with alone_in(self.directory):
            found = bench.run(self.arms, on_progress, out_of_time)
        if not finished(found, self.arms):
            return None
        told = self.told(found)
        write_whole(self.directory / f"{self.name}.json", json.dumps(told.as_dict(), indent=2))
        return told

    @cached_property
    def directory(self) -> Path:
        digest = self.ground.digest(self.recipe, self.ground.examples, self.settings, self.plan)
        return self.home / self.name / f"{self.recipe.name}-{digest[:12]}"


def key_of(planned: Planned) -> str:
    return f"{planned.measure.name}/{planned.task.name}"


def finished(found: Sequence[ArmReadings], arms: Iterable[Arm]) -> bool:
    return {(arm.name, arm.seed) for arm in arms} <= {(one.name, one.seed) for one in found}


def contrast(found: Sequence[ArmReadings], one: str, other: str, keys: Sequence[str]) -> Contrast:
    """`one` minus `other` over the items of all keys together, which must share a unit; each seed is paired with its own.

    Items that one of the two could not show under some seed are left out; where too few are left, the change is unknown (n = 0).
    """
    pairs = _paired(found, one, other)
    if not pairs or not keys:
        return Contrast(one, other, UNKNOWN, ())
    clusters = [cluster for key in keys for cluster in pairs[0][0].clusters[key]]
    above = np.array([_values(arm, keys) for arm, _ in pairs])  # seeds x items
    below = np.array([_values(arm, keys) for _, arm in pairs])
    both = np.isfinite(above).all(0) & np.isfinite(below).all(0)
    if both.sum() < min(LEAST_PAIRED, len(both)):
        return Contrast(one, other, UNKNOWN, ())
    above, below = above[:, both], below[:, both]
    kept = [cluster for cluster, measurable in zip(clusters, both, strict=True) if measurable]
    differences = {str(seed): row.tolist() for seed, row in enumerate(above - below)}
    nothing = [0.0] * len(kept)
    change = change_over_seeds(nothing, differences, kept) if len(pairs) > 1 else paired_change(nothing, differences["0"], kept)
    return Contrast(one, other, change, tuple((above - below).mean(1).tolist()))


def _paired(found: Sequence[ArmReadings], one: str, other: str) -> list[tuple[ArmReadings, ArmReadings]]:
    """Of each seed that both have; what has none of its own stands beside every seed."""
    ones, others = ({arm.seed: arm for arm in found if arm.name == name} for name in (one, other))
    if other in (BACKBONE, PLACEHOLDER):
        return [(ones[seed], others[0]) for seed in sorted(ones) if others]
    return [(ones[seed], others[seed]) for seed in sorted(ones.keys() & others.keys())]


def _values(readings: ArmReadings, keys: Sequence[str]) -> list[float]:
    return [value for key in keys for value in readings.values[key]]
