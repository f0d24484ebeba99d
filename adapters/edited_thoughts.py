"""Edited thoughts: what is read in the place of an earlier adapter's soft thoughts. To measure with, never to serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from adapters.adapter import Adapter, Contribution, Prompt
from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.spec import Spec


@dataclass(frozen=True)
class EditedThoughts:
    """Stands last in a profile. `instead`: by the ids of a transformed prompt, the prompt that the backbone reads instead."""

    instead: Mapping[tuple[int, ...], Prompt]
    spec: Spec = field(default_factory=Spec)

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        return nullcontext()

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        return self.instead.get(prompt.ids, prompt)

    def contribution(self) -> Contribution:
        return Contribution()

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def scaled(self, factor: float) -> EditedThoughts:
        return self

    def scaled_by_layer(self, factors: Sequence[float]) -> EditedThoughts:
        return self

    def save(self, directory: Path) -> None:
        raise RefusedAdapter(
            "Edited thoughts belong to the prompts of one measurement and are not saved. Save the adapters below."
        )


if TYPE_CHECKING:
    _: Adapter = EditedThoughts({})
