"""What every fit of a recipe stands on: the backbone, the domain, its training rows, and what can be measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.files import new_adapter
from evaluation.evaluate import Planned
from evaluation.task import Example, Task
from evaluation.tasks import task_named
from tuning.continuing import check_start, started
from tuning.measurable import not_measurable
from tuning.plan import data_digest, training_examples
from tuning.recipe import Recipe
from tuning.servable import check_servable
from tuning.usable import check_lengths, check_usable


@dataclass(frozen=True)
class Ground:
    """`not_measurable`: protected families that cannot show a loss on this backbone, and why."""

    backbone: Backbone
    domain: Task
    examples: Sequence[Example]
    not_measurable: dict[str, str]

    @classmethod
    def of(cls, recipe: Recipe, cache: Path, on_admission: Callable[[float], None] | None = None) -> Ground:
        """Loads and checks all of it; what is not in the cache about the backbone is read first, and kept there."""
        backbone, domain = backbone_of(recipe), task_named(recipe.domain)
        examples = training_examples(recipe, domain)
        check_usable(recipe, domain, examples)
        check_lengths(recipe, backbone, examples)
        check_start(recipe, backbone)
        check_servable(recipe, backbone)
        return cls(backbone, domain, examples, not_measurable(recipe, backbone, cache, on_admission))

    def digest(
        self, recipe: Recipe, examples: Sequence[Example], settings: Mapping[str, JsonValue], plan: Sequence[Planned]
    ) -> str:
        """SHA-256 over all that decides a study of fits: what of the recipe concerns a fit, the rows, and what is read how."""
        fields = {"backbone", "domain", "protected", "adapter", "method", "evaluation"}
        if recipe.backbone_format != "full":
            fields |= {"backbone_format"}
        deciding = [
            recipe.model_dump(mode="json", include=fields),
            dict(settings),
            self.backbone.fingerprint,
            data_digest(examples),
            [[one.measure.name, one.measure.version, one.task.name, data_digest(one.examples)] for one in plan],
        ]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def backbone_of(recipe: Recipe, device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
    """The recipe's backbone as it is fitted around."""
    again = recipe.fit.gradient_checkpointing
    return Backbone.load(recipe.backbone, device=device, dtype=dtype, format=recipe.backbone_format, recompute=again)


def new_adapters(recipe: Recipe, backbone: Backbone) -> tuple[Adapter, ...]:
    """Of the kinds that the recipe names, before their fit: new ones, or those that it continues."""
    new = tuple(new_adapter(getattr(recipe.adapter, kind)) for kind in recipe.adapter.kind.split("+"))
    return started(recipe, backbone, new)
