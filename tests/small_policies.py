"""Set-up of tests that search a policy: studies over the test-bed, whose truth is known, and over an engine that throws dice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.decoding.row_policy import COMPILED
from engine.engine import Completion, Engine, GenerationRequest
from engine.profile import Profile
from evaluation.task import Task
from registry.tracking import Tracking
from tuning.decoding.items import halves
from tuning.decoding.reading import Bench
from tuning.decoding.settings import DecodingSearch
from tuning.decoding.space import searchable
from tuning.decoding.study import PolicyStudy

FEW = DecodingSearch(
    kinds=("budget",), trials=8, items=24, family_items=8, tolerance=0.2, ranges={"budget.max_trace_tokens": (4, 64)}
)


def study_of(
    engine: Engine,
    backbone: Backbone,
    domain: Task,
    place: Path,
    settings: DecodingSearch = FEW,
    released: Profile | None = None,
    protected: Sequence[str] = (),
    tracking: Tracking | None = None,
) -> PolicyStudy:
    """Of a release that has no files."""
    released = released or Profile()
    items = halves(settings, domain, protected, (), with_likelihood=False)
    space = searchable(settings, released, engine, backbone, items.domain_items, "small@1")
    bench = Bench(engine, backbone, items, place / "cache", "float32", settings.digest("small@1"))
    kept = tracking or Tracking.at(place)
    return PolicyStudy("small@1", settings, space, bench, {}, place / "decoding" / "small@1", kept, None)


class DiceEngine(IdleEngine):
    """Right on half of the items under any policy, and of any length: no policy is better than another, but by chance."""

    def __init__(self, backbone: Backbone, seed: int) -> None:
        self.backbone, self.seed = backbone, seed
        self._profiles: dict[str, Profile] = {}

    def load(self, name: str, profile: Profile) -> None:
        self._profiles[name] = profile

    def profile(self, name: str) -> Profile:
        return self._profiles[name]

    def unload(self, name: str) -> None:
        del self._profiles[name]

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [self._thrown(request) for request in requests]

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"generate", *COMPILED})

    def _thrown(self, request: GenerationRequest) -> Completion:
        policy = self._profiles[request.profile].policy.model_dump_json() if request.profile else ""
        rng = random.Random(f"{self.seed}/{policy}/{request.prompt_ids}")
        text = "Answer: yes" if rng.random() < 0.5 else "Answer: no"
        ids = (1,) * rng.randint(5, 40)
        return Completion(text, ids, (0.0,) * len(ids), "stop", len(request.prompt_ids))


if TYPE_CHECKING:
    _: Engine = DiceEngine(Backbone.load(""), 0)
