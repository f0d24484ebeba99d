"""A sparse autoencoder from nothing to its gates: harvest, two fits that differ in their seed alone, and what both must show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from adapters.sae import SAE, SAERecord, check_width
from adapters.steering import SteeringSpec
from engine.engine import Continuation, Engine
from evaluation.places import Places, own_chains
from evaluation.reason_score import WORDS, Groups
from evaluation.sae_gates import SAEGates, sae_gates
from evaluation.task import Example, Split, Task
from evaluation.tasks import task_named
from tuning.harvest import HarvestSpec, harvested
from tuning.journal import alone_in
from tuning.sae_fit import SAEFitSpec, check_places, fit_sae

TRACES = 32  # chains of the search split that the recovered loss is measured on
OTHER_SEED = 1  # later than the fit's own

OnProgress = Callable[[str, int, int], None]  # what is being counted, how many are done, of how many


def _quiet(what: str, done: int, of: int) -> None:
    pass


@dataclass(frozen=True)
class SAEStudy:
    """Harvest and fits are kept below the home and are not made again."""

    engine: Engine
    backbone: Backbone
    harvest: HarvestSpec
    fit: SAEFitSpec
    home: Path
    groups: Groups = WORDS
    on_progress: OnProgress = _quiet

    def __post_init__(self) -> None:
        """What cannot be fitted is refused before anything is harvested."""
        check_width(self.fit.width * self.backbone.hidden_size, self.fit.k)
        check_places(self.harvest.places, self.fit)
        assert self.layer >= 0

    @property
    def layer(self) -> int:
        return SteeringSpec(layer=self.harvest.layer).index(len(self.backbone.layers))

    @property
    def folder(self) -> Path:
        return self.home / "sae" / self.harvest.key(self.backbone)

    @cached_property
    def places(self) -> Places:
        """The harvested ones without the outliers."""
        with alone_in(self.folder):
            return harvested(self.engine, self.backbone, self.harvest, self.home, self.on_progress).usual

    def sae(self, seed: int) -> SAE:
        """Fitted on the places that are not held out, measured over all of them."""
        spec = self.fit.model_copy(update={"seed": seed})
        key = hashlib.sha256(json.dumps([spec.model_dump(), self.harvest.places], sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / f"fit-{key}"
        trained = self.places.trained
        with alone_in(self.folder):
            if not (folder / "sae" / "cfg.json").is_file():
                made = fit_sae(spec, trained.states_NH, self._record(spec), folder / "fit.safetensors", self._on_step(seed))
                made.save(folder / "sae")
                (folder / "fit.safetensors").unlink(missing_ok=True)
        return SAE.load(folder / "sae")

    def gated(self) -> tuple[SAE, SAEGates]:
        """The autoencoder of the fit's seed, its gates among what is told of it."""
        saes = self.sae(self.fit.seed), self.sae(self.fit.seed + OTHER_SEED)
        found = sae_gates(self.backbone, saes, self.places, self.traces(), self.groups)
        return saes[0].told(gates=found.as_dict(), words=[list(group) for group in self.groups]), found

    def traces(self) -> list[Continuation]:
        """Chains to questions of the search split."""
        examples = [example for _, drawn in items_of(self.harvest, "search", TRACES) for example in drawn]
        return own_chains(self.engine, self.backbone, examples, self.harvest.max_new_tokens)

    def _record(self, spec: SAEFitSpec) -> SAERecord:
        told: dict[str, Any] = {"harvest": self.harvest.model_dump(mode="json"), "fit": spec.model_dump(mode="json")}
        told["places"] = self.places.counts()
        return SAERecord(
            layer=self.layer,
            backbone=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            threshold=0.0,
            told=told,
        )

    def _on_step(self, seed: int) -> Callable[[int, int, float, float], None]:
        def say(done: int, of: int, unexplained: float, dead: float) -> None:
            self.on_progress(f"steps of seed {seed}", done, of)

        return say


def items_of(harvest: HarvestSpec, split: Split, count: int) -> list[tuple[Task, list[Example]]]:
    """About `count` examples, as many of each task of the harvest."""
    each = max(count // len(harvest.tasks), 1)
    return [(task, task.examples(split, each)) for task in map(task_named, harvest.tasks)]
