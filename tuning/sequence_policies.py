"""What answers after each stage of a sequence, under each policy, and how all domains and families fare under it.

own        every domain fitted so far is asked of its own adapter by name, a domain to come of the backbone; a family is asked of
           each adapter so far, and the mean stands for them, since whoever asks by name asks one of them for everything
continued  one adapter, fitted on from stage to stage, is asked everything
merged     the own adapters so far, merged into one, are asked everything
routed     a router between the backbone and the own adapters so far decides for every prompt
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from adapters.backbone import Backbone
from adapters.merge import MergeSpec
from engine.inspect import Inspector
from engine.profile import Profile
from engine.routed_engine import RoutedEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned, Row, change_between, evaluate
from evaluation.task import Task
from evaluation.tasks.generated import draws_groups
from registry.manifest import directory_digest
from tuning.router_fit import RouterSpec
from tuning.sequence_fits import Fittable, Made, SequenceFits, router_of, router_reading

Policy = Literal["own", "continued", "merged", "routed"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
ASKED = "sequence"  # the name under which the engine answers
Document = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """Reads what a stage serves on the items of the plan: one entry a domain and family, by the task's name."""

    engine: Inspector
    backbone: Backbone
    plan: Mapping[str, Planned]
    cache: Path
    precision: str

    def of_backbone(self, tasks: Sequence[str]) -> dict[str, Row]:
        return self._rows(evaluate(self.engine, self.backbone, None, self._planned(tasks), self._cached("base")).rows)

    def of_adapter(self, made: Made, tasks: Sequence[str]) -> dict[str, Row]:
        self.engine.load(ASKED, Profile.load(made.directory))
        adapted = self._cached("adapted", directory_digest(made.directory))
        try:
            plan, base = self._planned(tasks), self._cached("base")
            return self._rows(evaluate(self.engine, self.backbone, ASKED, plan, base, adapted_cache=adapted).rows)
        finally:
            self.engine.unload(ASKED)

    def of_router(self, router: Made, parts: Mapping[str, Made], tasks: Sequence[str]) -> dict[str, Row]:
        """`parts`: the adapter of each of the router's names."""
        for name, made in parts.items():
            self.engine.load(f"{ASKED}/{name}", Profile.load(made.directory))
        digests = [directory_digest(made.directory) for made in (router, *(parts[name] for name in sorted(parts)))]
        adapted = self._cached("adapted", hashlib.sha256("/".join(digests).encode()).hexdigest())
        routed = RoutedEngine(self.engine, router_of(router), {name: f"{ASKED}/{name}" for name in parts}, ASKED)
        try:
            plan, base = self._planned(tasks), self._cached("base")
            return self._rows(evaluate(routed, self.backbone, ASKED, plan, base, adapted_cache=adapted).rows)
        finally:
            for name in parts:
                self.engine.unload(f"{ASKED}/{name}")

    def _planned(self, tasks: Sequence[str]) -> list[Planned]:
        return [self.plan[task] for task in tasks]

    def _cached(self, kind: str, profile: str = "") -> BaseCache:
        return BaseCache(self.cache / kind, self.precision, profile)

    def _rows(self, rows: Sequence[Row]) -> dict[str, Row]:
        return {row.planned.task.name: row for row in rows}


@dataclass(frozen=True)
class Stages:
    """One order of the domains. A stage is counted from 1: so many domains have been fitted."""

    domains: Sequence[Fittable]
    families: Sequence[Task]
    fits: SequenceFits
    reader: Reader
    merge: MergeSpec
    router: RouterSpec
    weights: Mapping[str, float] = field(default_factory=dict)  # in a merge, by domain; 1 each where there are none

    def document(self, policy: Policy, stage: int) -> Document:
        """As `graftline evaluate --json` tells a subject, the stage's own domain first."""
        reads: dict[Policy, Callable[[int], tuple[dict[str, Row], dict[str, float]]]] = {
            "own": self._own,
            "continued": self._continued,
            "merged": self._merged,
            "routed": self._routed,
        }
        rows, routing = reads[policy](stage)
        own, *others = (self.domains[stage - 1], *self.domains[: stage - 1], *self.domains[stage:])
        names = [*(domain.name for domain in (own, *others)), *(family.name for family in self.families)]
        so_far = ", ".join(domain.name for domain in self.domains[:stage])
        told = {"subject": f"{policy} after {so_far}", "backbone": self.reader.backbone.name}
        return {**told, "rows": [rows[name].as_dict() for name in names], **({"routing": routing} if routing else {})}

    @property
    def _all(self) -> list[str]:
        return [*(domain.name for domain in self.domains), *(family.name for family in self.families)]

    def _own(self, stage: int) -> tuple[dict[str, Row], dict[str, float]]:
        families = [family.name for family in self.families]
        rows = self.reader.of_backbone([domain.name for domain in self.domains[stage:]])
        asked: list[dict[str, Row]] = []
        for domain in self.domains[:stage]:
            asked.append(self.reader.of_adapter(self.fits.own(domain), [domain.name, *families]))
            rows[domain.name] = asked[-1][domain.name]
        return rows | {name: mean_of([one[name] for one in asked]) for name in families}, {}

    def _continued(self, stage: int) -> tuple[dict[str, Row], dict[str, float]]:
        first, *later = self.domains[:stage]
        made = self.fits.own(first)
        for domain in later:
            made = self.fits.continued(domain, made)
        return self.reader.of_adapter(made, self._all), {}

    def _merged(self, stage: int) -> tuple[dict[str, Row], dict[str, float]]:
        domains = self.domains[:stage]
        spec = self.merge.model_copy(update={"weights": tuple(self.weights[domain.name] for domain in domains if self.weights)})
        return self.reader.of_adapter(self.fits.merged([self.fits.own(domain) for domain in domains], spec), self._all), {}

    def _routed(self, stage: int) -> tuple[dict[str, Row], dict[str, float]]:
        parts = {domain.name: self.fits.own(domain) for domain in self.domains[:stage]}
        tasks = {domain.name: domain.task for domain in self.domains[:stage]}
        router = self.fits.router(self.reader.engine, tasks, self.families, self.router)
        return self.reader.of_router(router, parts, self._all), router_reading(router)


def mean_of(rows: Sequence[Row]) -> Row:
    """Item by item over several adapters, beside the one backbone. What is told of single answers (flips) has no mean."""
    first, *others = rows
    if not others:
        return first
    values = tuple(np.mean([row.adapted.values for row in rows], axis=0).tolist())
    adapted = replace(first.adapted, values=values, parts={}, tokens=sum(row.adapted.tokens for row in rows))
    drawn = draws_groups(first.planned.task, first.base.clusters)
    return Row(first.planned, first.base, adapted, *change_between(first.base, adapted, drawn))
