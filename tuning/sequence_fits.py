"""The adapters and routers of a sequence, each made once and kept by all that decides it, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from adapters.merge import MergeSpec
from adapters.whole_file import whole_directory, write_whole
from engine.engine import Continuation
from engine.inspect import Inspector
from engine.profile import Profile
from evaluation.task import Example, Task
from registry.manifest import MANIFEST, file_digest, verify
from tuning.gating import Subject
from tuning.journal import alone_in
from tuning.laid_out import fitted_on
from tuning.manifest import complete
from tuning.merging import Parents, merge
from tuning.plan import data_digest
from tuning.recipe import GIVEN_BY_START, Recipe
from tuning.router_fit import RouterSpec, fit_router

# Legend: L layers, P places, H hidden

Told = Callable[[str, int, int], None]  # (what is counted, so many, of so many)
READING = "reading.json"  # how a router did on prompts that it had not seen


@dataclass(frozen=True)
class Fittable:
    """One domain of a sequence: its recipe, and the rows that the recipe fits."""

    recipe: Recipe
    task: Task
    examples: Sequence[Example]

    @property
    def name(self) -> str:
        return self.task.name


@dataclass(frozen=True)
class Made:
    """`key` is of all that decided it."""

    key: str
    directory: Path


@dataclass
class MeanStates:
    """Of every prompt that a router was fitted on, the mean state by layer, [H]: the routers of later stages ask for it again.

    It answers what a fit of a router asks of an engine, with one place in place of all: the mean over them is the same.
    """

    engine: Inspector | None = None
    _known: dict[tuple[tuple[int, ...], int], Tensor] = field(default_factory=dict)

    def of(self, engine: Inspector) -> MeanStates:
        self.engine = engine
        return self

    def hidden_states(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[Tensor]:
        """[L, 1, H] of each continuation. All are asked of the backbone."""
        assert self.engine is not None and not any(profiles)
        keys = [(*one.prompt_ids, *one.ids) for one in continuations]
        fresh = {
            key: one for key, one in zip(keys, continuations, strict=True) if any((key, at) not in self._known for at in layers)
        }
        if fresh:
            read = self.engine.hidden_states(list(fresh.values()), [None] * len(fresh), layers)
            for key, states_LPH in zip(fresh, read, strict=True):
                self._known |= {(key, at): mean_H for at, mean_H in zip(layers, states_LPH.mean(dim=1), strict=True)}
        return [torch.stack([self._known[key, at] for at in layers])[:, None] for key in keys]


@dataclass(frozen=True)
class SequenceFits:
    """`sweep` searches a recipe and returns the directory of its best adapter; None fits the recipe's own values, at scale 1."""

    backbone: Backbone
    directory: Path
    on_progress: Told
    sweep: Callable[[Recipe], Path] | None = None
    _states: MeanStates = field(default_factory=MeanStates)

    def own(self, domain: Fittable) -> Made:
        """An adapter of this domain alone."""
        return self._fitted(domain, domain.recipe, None)

    def continued(self, domain: Fittable, start: Made) -> Made:
        """The adapter `start`, fitted on to this domain; `start` itself stays as it is."""
        return self._fitted(domain, continuing(domain.recipe, start.directory), start)

    def merged(self, parts: Sequence[Made], spec: MergeSpec) -> Made:
        """Of one adapter it is that adapter. The order of the parts, each with its weight, decides nothing."""
        if len(parts) == 1:
            return parts[0]
        weighed = sorted(zip(parts, spec.weights or (1.0,) * len(parts), strict=True), key=lambda pair: pair[0].key)
        parts = [part for part, _ in weighed]
        if spec.weights:
            spec = spec.model_copy(update={"weights": tuple(weight for _, weight in weighed)})
        made = self._place("merged", spec.model_dump(mode="json"), [part.key for part in parts])
        if not made.directory.is_dir():
            subjects = [Subject(part.key[:12], part.directory, verify(part.directory)) for part in parts]
            made.directory.parent.mkdir(parents=True, exist_ok=True)
            merge(Parents.of(subjects, self.backbone), self.backbone, spec, made.directory)
        return made

    def router(self, engine: Inspector, parts: Mapping[str, Task], others: Sequence[Task], spec: RouterSpec) -> Made:
        """Between the backbone and the domains' own adapters, each under its task's name. `others` are the backbone's."""
        names = sorted(parts)
        deciding = [self.backbone.fingerprint, *self._format, spec.model_dump(mode="json"), str(self.backbone.dtype)]
        questions = [[data_digest(parts[name].examples("train", spec.items, seed=spec.seed)), name] for name in names]
        made = self._place("router", [*deciding, questions], [task.name for task in others])
        if not made.directory.is_dir():
            fitted = fit_router(
                cast(Inspector, self._states.of(engine)),
                self.backbone,
                {name: parts[name] for name in names},
                others,
                spec,
                on_progress=lambda done, of: self.on_progress("prompts read for the router", done, of),
            )
            with whole_directory(made.directory) as part:
                fitted.router.save(part)
                write_whole(part / READING, json.dumps(asdict(fitted.reading)))
        return made

    def _fitted(self, domain: Fittable, recipe: Recipe, start: Made | None) -> Made:
        told = recipe.model_dump(mode="json", include={"adapter", "method", *(_SEARCHED if self.sweep else ())})
        for name in ("warm_start", "orthogonal_to"):
            del told["adapter"][name]  # a path; what is there decides
        earlier = [start.key] if start else [file_digest(Path(one) / MANIFEST) for one in starts_of(recipe)]
        deciding = [self.backbone.fingerprint, *self._format, told, data_digest(domain.examples)]
        made = self._place("fit", deciding, earlier)
        if made.directory.is_dir():
            return made
        if self.sweep is not None:
            found = self.sweep(recipe.with_values({"name": f"{recipe.name[:60]}-{made.key[:12]}"}))
            with whole_directory(made.directory) as part:
                shutil.copytree(found, part, dirs_exist_ok=True)
            return made
        work = self.directory / "work" / made.key[:16]
        with alone_in(work):  # another sequence may ask for the same fit
            if made.directory.is_dir():
                return made
            adapters = fitted_on(
                recipe,
                self.backbone,
                domain.examples,
                lambda step, steps, loss: self.on_progress(f"steps of {recipe.name}", step, steps),
                task=domain.task,
                directory=work,
            ).adapters
            with whole_directory(made.directory) as part:
                complete(part, recipe, self.backbone, Profile(adapters), 1.0, domain.examples)
            shutil.rmtree(work, ignore_errors=True)
        return made

    @property
    def _format(self) -> list[str]:
        """Of another format than the full one, which has the fingerprint of the same files."""
        return [] if self.backbone.format == "full" else [self.backbone.format]

    def _place(self, kind: str, deciding: object, of: Sequence[str]) -> Made:
        key = hashlib.sha256(json.dumps([kind, deciding, list(of)], sort_keys=True).encode()).hexdigest()
        return Made(key, self.directory / kind / key[:16])


_SEARCHED = ("search", "ranges", "start", "study", "evaluation", "protected")


def continuing(recipe: Recipe, start: Path) -> Recipe:
    """The recipe as it goes on from an adapter, which decides its shape. BadRecipe where it cannot."""
    search = tuple(field for field in recipe.search if field not in GIVEN_BY_START)
    points = [{field: value for field, value in point.items() if field in search} for point in recipe.start]
    return recipe.with_values(
        {
            "adapter.warm_start": str(start),
            "search": search,
            "ranges": {field: bounds for field, bounds in recipe.ranges.items() if field in search},
            "start": tuple(point for point in points if point),
        }
    )


def starts_of(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe itself continues."""
    adapter = recipe.adapter
    return (*(() if adapter.warm_start is None else (adapter.warm_start,)), *adapter.orthogonal_to)


def router_of(made: Made) -> AdapterRouter:
    router = AdapterRouter.load(made.directory)
    assert router is not None
    return router


def router_reading(made: Made) -> dict[str, float]:
    """Shares of prompts that it sends right, astray, nowhere and to another, on the select split."""
    told = json.loads((made.directory / READING).read_text(encoding="utf-8"))
    return {name: float(told[name]) for name in ("right", "right_low", "right_high", "astray", "missed", "mistaken")}
