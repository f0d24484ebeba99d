"""Reads the live adapter at the checkpoints of its fit, tells the trial's parent, and ends the fit when that says so."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.statistics import PairedChange
from tuning.errors import FitStopped
from tuning.journal import Journal
from tuning.stop_curve import FamilyChange, FitReading, Point

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.base_cache import BaseCache
    from evaluation.evaluate import Evaluation, Planned
    from tuning.ground import Ground
    from tuning.objective import TrialScore
    from tuning.recipe import Recipe

# What a fit says at a checkpoint ("probe") or while it is measured ("items"), and why it should end; None: it should go on.
# Before it is read at a checkpoint it says so ("due"), and is told why it should not be.
Ask = Callable[[str, Mapping[str, Any]], str | None]
READINGS = "readings.jsonl"  # in the trial's directory: a fit that goes on after a kill is not read again
_LIVE = "live"  # the profile under which the adapters are read


@dataclass
class Probe:
    """Of one fit. Nothing of the fit depends on it: random numbers, weights and attached layers are left as they are."""

    recipe: Recipe
    ground: Ground
    engine: TorchEngine
    cache: BaseCache
    directory: Path
    ask: Ask
    alive: Callable[[], None]
    adapters: Sequence[Adapter] = ()
    seconds: float = 0.0  # that reading took in this process
    _done: set[float] = field(default_factory=set)

    def begin(self, adapters: Sequence[Adapter]) -> None:
        """Tells what an earlier process read of this very fit, whose last word its parent may not have heard."""
        self.adapters = adapters
        for entry in self._journal.entries():
            if entry["identity"] == self._identity:
                reading = FitReading.of(entry["reading"])
                self._done.add(reading.checkpoint)
                self._told(reading)

    def on_step(self, step: int, steps: int) -> None:
        """After each update of the fit. Raises FitStopped."""
        stop = self.recipe.study.stop
        due = [share for share in stop.checkpoints if stop.reads_fits and step == checkpoint_step(share, steps)]
        if not due or due[-1] in self._done:
            return
        if self.ask("due", {"checkpoint": due[-1]}) is not None:
            return  # not worth its time
        reading = self.read(due[-1])  # of several that fall on one step, the last
        if reading is not None:
            self._journal.append({"identity": self._identity, "reading": reading.as_dict()})
            self._told(reading)

    def read(self, checkpoint: float) -> FitReading | None:
        """None where no family can be measured on so few items."""
        import torch

        from adapters.softcot import SoftCoT
        from engine.profile import Profile
        from evaluation.evaluate import evaluate

        started, points = time.monotonic(), list[Point]()
        profile = Profile(tuple(one.apart() if isinstance(one, SoftCoT) else one for one in self.adapters))
        smallest, largest = min(self.recipe.study.scales), max(self.recipe.study.scales)
        with torch.random.fork_rng(devices=[]):
            for scale in (largest, smallest):
                if points and (scale == largest or points[0].is_tolerable):
                    break
                self.engine.load(_LIVE, profile.scaled(scale))
                found = evaluate(self.engine, self.ground.backbone, _LIVE, self._plan, self.cache, lambda planned: self.alive())
                self.engine.unload(_LIVE)
                points.insert(0, point_of(scale, found, self._margins))
        taken = time.monotonic() - started
        self.seconds += taken
        if not all(point.families for point in points):
            return None
        stop = self.recipe.study.stop
        return FitReading(checkpoint, (stop.domain_items, stop.family_items), tuple(points), smallest, taken)

    def by_items(self, profile: Profile) -> TrialScore | None:
        """What is known of a fitted adapter that was ended on the way; None where nothing is read item by item, or all was."""
        from tuning.stop_items import read_by_items

        if not self.recipe.study.stop.reads_items or (reading := self.read(1.0)) is None:
            return None
        parts = (self.engine, self.cache, self.ask, self.alive)
        return read_by_items(self.recipe, self.ground, profile, reading.chosen, *parts)

    def _told(self, reading: FitReading) -> None:
        reason = self.ask("probe", reading.as_dict())
        if reason is not None:
            raise FitStopped(reason)

    @cached_property
    def _plan(self) -> list[Planned]:
        from tuning.plan import likelihood_plan

        stop = self.recipe.study.stop
        sizes = {"domain_items": stop.domain_items, "chain_items": stop.family_items}
        fewer = self.recipe.model_copy(update={"evaluation": self.recipe.evaluation.model_copy(update=sizes)})
        return likelihood_plan(fewer, self.ground.domain, without=self.ground.not_measurable)

    @cached_property
    def _margins(self) -> dict[str, float]:
        from tuning.plan import margins_of

        return margins_of(self.recipe, self._plan)

    @cached_property
    def _identity(self) -> str:
        """Of what decides a reading: the fit, the items and the scales."""
        stop = self.recipe.study.stop
        fields = {"backbone", "domain", "protected", "adapter", "method", "evaluation"}
        deciding = [self.recipe.model_dump(mode="json", include=fields), stop.domain_items, stop.family_items]
        deciding.append(self.recipe.study.scales)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    @property
    def _journal(self) -> Journal:
        return Journal(self.directory / READINGS)


def can_be_read(recipe: Recipe) -> bool:
    """Whether anything looks at the readings, and there is something to read: a compression's steps are layers, not updates."""
    stop = recipe.study.stop
    return (stop.reads_fits or stop.reads_items) and "steering" not in recipe.adapter.kind


def checkpoint_step(share: float, steps: int) -> int:
    """The first step, counted from 1, at which the share of the steps is done."""
    return max(1, math.ceil(share * steps - 1e-9))


def point_of(scale: float, found: Evaluation, margins: Mapping[str, float]) -> Point:
    """Families that nothing is known of are left out."""
    families = {name: _in_margins(row.change, margins[name]) for name, row in found.retention.items() if not row.not_measurable}
    gain = found.domain.change
    # Items that all stayed as they were show no spread; one more of them might have changed.
    return Point(scale, gain.mean, max(_stderr(gain), 1 / gain.n), families)


def _in_margins(change: PairedChange, margin: float) -> FamilyChange:
    return FamilyChange(change.mean / margin, change.low / margin, change.high / margin, _stderr(change) / margin)


def _stderr(change: PairedChange) -> float:
    """By the interval where items show no spread of their own."""
    return (change.high - change.low) / 3.92 if math.isnan(change.stderr) else change.stderr
