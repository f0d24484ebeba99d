"""What a profile writes on one half of the items, kept by content: no profile is read twice on the same items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.backbone import Backbone
from adapters.steering import Steering
from engine.engine import Engine
from engine.profile import Profile
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, compared, read_plan
from evaluation.measure import Readings
from evaluation.retention import DEFAULT_MARGINS
from evaluation.statistics import PairedChange, paired_change
from evaluation.tasks.generated import draws_groups
from tuning.decoding.items import Halves
from tuning.objective import ScaleScore, constraints
from tuning.plan import WRITTEN_MEASURE

READ = "read"  # the name under which the engine holds the profile


@dataclass(frozen=True)
class Written:
    """The domain's answers first, then the protected families', as the plan has them."""

    plan: tuple[Planned, ...]
    readings: tuple[Readings, ...]

    @property
    def accuracy(self) -> float:
        return self.readings[0].mean

    @property
    def tokens(self) -> float:
        return self.readings[0].part_mean("tokens")

    def accuracy_change(self, reference: Written) -> PairedChange:
        return self._change(reference.readings[0].values, self.readings[0].values)

    def tokens_change(self, reference: Written) -> PairedChange:
        return self._change(*(side.readings[0].parts["tokens"] for side in (reference, self)))

    def constraints(self, backbone: Sequence[Readings], margins: Mapping[str, float]) -> dict[str, float]:
        """As in a sweep, against the backbone: by protected family, and for all that is written; at or below 0 one holds."""
        chains, written, counts = dict[str, float](), dict[str, float](), dict[str, int]()
        for planned, base, read in zip(self.plan[1:], backbone, self.readings[1:], strict=True):
            row = compared(planned, base, read)
            if row.not_measurable:
                continue
            name = planned.task.name
            if planned.measure.name == WRITTEN_MEASURE:
                written[name], counts[name] = row.change.mean, row.change.n
            else:
                chains[name] = row.change.mean
        read_only = [planned for planned in self.plan[1:] if planned.measure.name != WRITTEN_MEASURE]
        limits = {p.task.name: margins.get(p.task.name, DEFAULT_MARGINS[p.measure.unit]) for p in read_only}
        return constraints(ScaleScore(1.0, 0.0, 0.0, chains), written, counts, limits)

    def _change(self, base: Sequence[float], read: Sequence[float]) -> PairedChange:
        clusters = self.readings[0].clusters
        return paired_change(base, read, clusters, drawn_clusters=draws_groups(self.plan[0].task, clusters))


@dataclass(frozen=True)
class Bench:
    """`identity` is of the release's own files; what a policy or a strength changes is added to it."""

    engine: Engine
    backbone: Backbone
    items: Halves
    cache: Path
    precision: str
    identity: str

    def written(self, profile: Profile, confirm: bool = False) -> Written:
        """Of the items that choose, or of those that confirm."""
        plan = self.items.confirming if confirm else self.items.choosing
        self.engine.load(READ, profile)
        try:
            kept = BaseCache(self.cache / "decoding", self.precision, self.digest(profile))
            return Written(plan, tuple(read_plan(self.engine, self.backbone, READ, plan, kept)))
        finally:
            self.engine.unload(READ)

    def of_backbone(self, confirm: bool = False) -> Sequence[Readings]:
        """What the backbone reads and writes of the protected families, without any adapter or policy."""
        plan = self.items.confirming if confirm else self.items.choosing
        return read_plan(self.engine, self.backbone, None, plan[1:], BaseCache(self.cache / "base", self.precision))

    def digest(self, profile: Profile) -> str:
        """Equal digests, equal replies."""
        vectors = [
            [adapter.layer, adapter.factor, hashlib.sha256(adapter.tensors()["vector"].cpu().numpy().tobytes()).hexdigest()]
            for adapter in profile.adapters
            if isinstance(adapter, Steering)
        ]
        told = [self.identity, profile.policy.model_dump(mode="json"), vectors]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
