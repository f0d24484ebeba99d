"""The harvest: states of one layer at places of the backbone's own chains, of their questions and of other texts, in shards.

A shard is a file that is there whole or not at all, and follows from the spec and its number: a harvest that was stopped goes on
with the next one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from adapters.backbone import Backbone
from adapters.spec import Spec
from adapters.steering import Layer, SteeringSpec
from engine.engine import Engine
from evaluation.places import CHAIN, QUESTION, TEXT, Places, own_chains, read_places
from evaluation.task import Example, Task, answer_line, question_text
from evaluation.tasks import FAMILIES, task_named
from tuning.errors import BadRecipe

_MAX_TEXT = 256  # tokens of one text that is no chain

OnProgress = Callable[[str, int, int], None]  # what is being counted, how many are done, of how many
Marked = list[tuple[int, int]]  # a text: its tokens, each with its kind


class HarvestSpec(Spec):
    """`places` in all; of them at most that share from the questions, and that share from examples of `texts`, read as prose."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(FAMILIES)
    texts: tuple[str, ...] = ("icd10", "text")
    places: Annotated[int, Field(ge=1)] = 200_000
    layer: Layer = 0.6
    question_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    text_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    max_new_tokens: Annotated[int, Field(ge=2)] = 128
    texts_per_shard: Annotated[int, Field(ge=1)] = 256
    seed: int = 0

    @model_validator(mode="after")
    def _chains_are_left(self) -> HarvestSpec:
        if self.question_share + self.text_share >= 1:
            raise ValueError(
                f"question_share and text_share leave room for chains, but are {self.question_share:g} and {self.text_share:g}. "
                "Lower one of them."
            )
        return self

    def key(self, backbone: Backbone) -> str:
        """The same for the same places: how many of them are asked for does not matter."""
        told = {**self.model_dump(mode="json", exclude={"places"}), "backbone": backbone.fingerprint}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def harvested(
    engine: Engine, backbone: Backbone, spec: HarvestSpec, home: Path, on_progress: OnProgress = lambda what, done, of: None
) -> Places:
    """As many places as asked for, or a shard more. BadRecipe where the tasks have no more examples before that."""
    harvest = _Harvest(engine, backbone, spec, tuple(map(task_named, spec.tasks)), tuple(map(task_named, spec.texts)))
    folder, found, total = home / "sae" / spec.key(backbone) / "shards", list[Places](), 0
    for number in count():
        on_progress("places harvested", min(total, spec.places), spec.places)
        if total >= spec.places:
            return Places.joined(found)
        file = folder / f"{number:05}.safetensors"
        if not file.is_file():
            made = harvest.shard(number)
            if made is None:
                named = ", ".join(spec.tasks)
                if not number:
                    raise BadRecipe(
                        f"States are harvested from chains, but {backbone.name!r} wrote none to {named}. Name other tasks."
                    )
                raise BadRecipe(
                    f"{spec.places} places were asked for, but {named} gave {total}. Name more tasks (generated ones do not run "
                    "dry), or ask for fewer places."
                )
            made.save(file)
        found.append(Places.load(file))
        total += len(found[-1])
    raise AssertionError("a count does not end")


def examples_read(backbone: Backbone, spec: HarvestSpec, home: Path) -> list[Example]:
    """What the shards of this home were harvested from: whose questions were asked, and whose texts may have been read."""
    num_shards = len(list((home / "sae" / spec.key(backbone) / "shards").glob("*.safetensors")))
    sides = [(tasks, spec.texts_per_shard // max(len(tasks), 1)) for tasks in (spec.tasks, spec.texts)]
    return [
        example
        for tasks, each in sides
        for task in map(task_named, tasks)
        for example in task.examples("train", max(each, 1) * num_shards, spec.seed)
    ]


@dataclass(frozen=True)
class _Harvest:
    engine: Engine
    backbone: Backbone
    spec: HarvestSpec
    tasks: tuple[Task, ...]
    texts: tuple[Task, ...]

    def shard(self, number: int) -> Places | None:
        """None where the tasks have no more examples."""
        spec, rng = self.spec, torch.Generator().manual_seed(self.spec.seed * 100_003 + number)
        layer = SteeringSpec(layer=spec.layer).index(len(self.backbone.layers))
        chains = own_chains(self.engine, self.backbone, self._examples(self.tasks, number), spec.max_new_tokens)
        if not chains:
            return None
        marked: list[Marked] = [
            [(token, QUESTION) for token in chain.prompt_ids] + [(token, CHAIN) for token in chain.ids] for chain in chains
        ]
        num_chain, share = sum(len(chain.ids) for chain in chains), 1 - spec.question_share - spec.text_share
        marked += self._prose(number, round(num_chain * spec.text_share / share))
        found = read_places(self.engine, marked, layer)
        questions = (found.kind_N == QUESTION).nonzero()[:, 0]
        spare = len(questions) - round(num_chain * spec.question_share / share)
        kept = torch.ones(len(found), dtype=torch.bool)
        kept[questions[torch.randperm(len(questions), generator=rng)[: max(spare, 0)]]] = False
        return found[kept]

    def _examples(self, tasks: Sequence[Task], number: int) -> list[Example]:
        """Those of shard `number`: each task's next ones, the tasks in turn."""
        each = max(self.spec.texts_per_shard // max(len(tasks), 1), 1)
        drawn = [task.examples("train", each * (number + 1), self.spec.seed)[each * number :] for task in tasks]
        return [example for place in range(each) for examples in drawn for example in examples[place : place + 1]]

    def _prose(self, number: int, num_tokens: int) -> list[Marked]:
        """Questions with their answers after the token that begins a text, as many as that takes."""
        begin = self.backbone.tokenizer.bos_token_id
        begin = int(self.backbone.tokenizer.eos_token_id if begin is None else begin)
        found, taken = list[Marked](), 0
        for example in self._examples(self.texts, number):
            if taken >= num_tokens:
                break
            ids = self.backbone.encode(f"{question_text(example)}\n{answer_line(example.answer)}")[:_MAX_TEXT]
            found.append([(token, TEXT) for token in (begin, *ids)])
            taken += len(ids)
        return found
