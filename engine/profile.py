"""A profile: what one served name is, as adapters over the backbone and a decoding policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from adapters.adapter import Adapter, Prompt, Stack
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter
from adapters.files import kind_of, load_adapters, save_adapters
from adapters.routing import FOLDER, Routing
from adapters.softcot import SoftCoT
from adapters.spec import Spec
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.decoding.tracing import Tracing
from engine.decoding.vocabulary import Vocabulary

PROFILE = "profile.json"


class DecodingPolicy(Spec):
    """How tokens are chosen when a request leaves it open. Every intervention is off by default.

    An intervention acts on the trace: on what is written before `trace_end` stands in the text. On a backbone that thinks between
    markers, `Answer:` stands for the end marker, and the trace is what is written between them.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    trace_end: Annotated[str, Field(min_length=1)] = ANSWER_CUE
    tip: SwitchPenalty | None = None  # None: off
    budget: Budget | None = None  # None: off
    branches: Branches | None = None  # None: one reply, unless a request asks for branches
    tracing: Tracing | None = None  # what a request may ask for; None: the backbone is not said to follow such prompts

    @field_validator("trace_end")
    @classmethod
    def _begins_and_ends_with_text(cls, value: str) -> str:
        if value != value.strip():
            raise ValueError(f"A trace's end is forced on a line of its own, but got {value!r}. Leave out the space around it.")
        return value

    def end_on(self, backbone: Vocabulary) -> str:
        return backbone.markers.end if backbone.markers is not None and self.trace_end == ANSWER_CUE else self.trace_end

    def under_grammar(self, backbone: Backbone) -> DecodingPolicy:
        """What of it acts on a reply that is held to a grammar.

        A budget holds for a chain between markers, behind which the grammar begins. Without markers the grammar is all there is:
        no cue is forced into it.
        """
        if self.budget is None:
            return self
        is_marked = backbone.markers is not None and self.end_on(backbone) == backbone.markers.end
        budget = self.budget.model_copy(update={"answer_is_line": False}) if is_marked else None
        return self.model_copy(update={"budget": budget})

    @property
    def interventions(self) -> Mapping[str, Spec]:
        """Those that act on a row's tokens and are on, by field."""
        found = {"tip": self.tip, "budget": self.budget}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def changes_replies(self) -> bool:
        """Whether a reply may be another one than greedy decoding gives."""
        return bool(self.interventions) or self.branches is not None

    @property
    def off(self) -> DecodingPolicy:
        """The same without any of that."""
        return self.model_copy(update={"tip": None, "budget": None, "branches": None})


@dataclass(frozen=True)
class Profile:
    """No adapters: the backbone itself, decoded as the policy says.

    With a routing the backbone writes, and the adapters say where it is steered.
    """

    adapters: tuple[Adapter, ...] = ()
    policy: DecodingPolicy = field(default_factory=DecodingPolicy)
    routing: Routing | None = None

    @property
    def num_chains(self) -> int:
        """Sets of soft thoughts that a prompt can be read with."""
        return max((adapter.spec.num_chains for adapter in self.adapters if isinstance(adapter, SoftCoT)), default=1)

    def transform(self, backbone: Backbone, ids: tuple[int, ...], chain: int = 0) -> Prompt:
        return Stack(self.adapters).transform(backbone, Prompt(ids, chain=chain))

    def scaled(self, factor: float) -> Profile:
        return replace(self, adapters=tuple(adapter.scaled(factor) for adapter in self.adapters))

    def scaled_by_layer(self, factors: Sequence[float]) -> Profile:
        """The adapters' effect in layer i multiplied by `factors[i]`: 0 in every layer leaves the soft thoughts alone."""
        return replace(self, adapters=tuple(adapter.scaled_by_layer(factors) for adapter in self.adapters))

    def save(self, directory: Path) -> None:
        save_adapters(self.adapters, directory)
        if self.routing is not None:
            self.routing.save(directory)
        kinds = [kind_of(adapter) for adapter in self.adapters]
        told = {"format_version": 1, "adapters": kinds, "policy": self.policy.model_dump(mode="json")}
        told["is_routed"] = self.routing is not None
        (directory / PROFILE).write_text(json.dumps(told, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Profile:
        """A directory that was saved here, or any plain PEFT LoRA directory (greedy decoding then)."""
        file, routing = directory / PROFILE, Routing.load(directory)
        if not file.is_file():
            return cls(load_adapters(directory), routing=routing)
        try:
            stored = _Stored.model_validate_json(file.read_bytes())
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(map(str, fault["loc"])) or "all of it"
            raise DamagedAdapter(f"{file} is not a profile ({place}: {fault['msg']}). Save the adapter again.") from error
        if stored.is_routed and routing is None:
            raise DamagedAdapter(f"{file} says that the profile is routed, but {directory / FOLDER} is not there. Restore it.")
        return cls(load_adapters(directory, stored.adapters), stored.policy, routing)


class _Stored(BaseModel):
    format_version: Literal[1]
    policy: DecodingPolicy
    adapters: tuple[str, ...] | None = None  # kinds; None: of before they were written
    is_routed: bool = False
