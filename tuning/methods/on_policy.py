"""What the methods share that learn from what the adapter itself writes: groups of completions to one prompt, step by step.

All is drawn from the step's number and the fit's identity, and what was written is kept as it is written: a fit that goes on at a
checkpoint meets the same prompts, and gets again what it had written after the checkpoint before it was killed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import model_validator

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.spec import Choices, Range
from engine.engine import Completion, GenerationRequest
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.task import Example, reasoning_prompt
from tuning.batches import Row
from tuning.methods.method import MethodSpec
from tuning.rollouts import WRITER, Rollouts, rollouts


class OnPolicySpec(MethodSpec):
    """A step learns from `batch_size` completions, `group_size` of them to each of its prompts."""

    learning_rate: Annotated[float, Range(1e-5, 5e-4, log=True)] = 1e-4  # ten times what full fine-tuning takes, not more
    group_size: Annotated[int, Choices((4, 8))] = 8
    temperature: Annotated[float, Range(0.6, 1.2)] = 1.0
    max_new_tokens: Annotated[int, Range(32, 256, log=True)] = 128

    @model_validator(mode="after")
    def _groups(self) -> OnPolicySpec:
        if self.group_size < 1 or self.batch_size % self.group_size:
            raise ValueError(
                f"A step's batch_size is a multiple of group_size, but got {self.batch_size} and {self.group_size}. "
                "Take 16 and 8."
            )
        if self.temperature <= 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"What is written is drawn at a temperature above 0 and has at least 1 token, but got temperature = "
                f"{self.temperature:g} and max_new_tokens = {self.max_new_tokens}."
            )
        return self

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size // self.group_size


@dataclass(frozen=True)
class Group:
    """Several completions to one prompt, by the adapter as it was at that step."""

    index: int  # of the example
    example: Example
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    key: str = ""  # of this group alone: its fit, step and place

    @property
    def rows(self) -> list[Row]:
        return [Row(self.prompt_ids, completion.token_ids) for completion in self.completions]


@dataclass
class Policy:
    """Writes the groups of a step. The adapters are those that are being fitted, attached or not."""

    backbone: Backbone
    adapters: Sequence[Adapter]
    examples: Sequence[Example]
    spec: OnPolicySpec
    identity: str
    rollouts: Rollouts
    asked: Sequence[tuple[int, ...]] = ()  # prompt ids by example
    _loaded: bool = False
    _groups: dict[int, list[Group]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = asked_of(self.backbone, self.examples, self.spec)
        self.longest = max(map(len, self.asked)) + self.spec.max_new_tokens

    def prompts(self, step: int) -> list[int]:
        """The examples of a step, by index: shuffled passes over all of them, without end."""
        count, size = self.spec.prompts_per_step, len(self.examples)
        found = []
        for place in range(step * count, (step + 1) * count):
            passed, index = divmod(place, size)
            found.append(random.Random(f"prompts/{self.spec.seed}/{passed}").sample(range(size), size)[index])
        return found

    def write(self, step: int) -> list[Group]:
        """The groups of a step by the adapters as they are now."""
        if self._loaded:
            self.rollouts.engine.refresh(WRITER)
        else:
            self.rollouts.engine.load(WRITER, Profile(tuple(self.adapters)))
            self._loaded = True
        return self.written(step)

    def written(self, step: int) -> list[Group]:
        """The groups of a step that were written before."""
        if step not in self._groups:
            self._groups[step] = self._written(step)
        return self._groups[step]

    def num_written(self, steps: int) -> int:
        """Tokens of all groups of the first steps."""
        groups = self.history(steps)
        return sum(len(completion.token_ids) for group in groups for completion in group.completions)

    def _written(self, step: int) -> list[Group]:
        size, drawn = self.spec.group_size, self.prompts(step)
        keys = [f"{self.identity}/{step}/{place}" for place in range(len(drawn))]
        requests = [
            GenerationRequest(
                self.asked[index],
                WRITER,
                self.spec.max_new_tokens,
                self.spec.temperature,
                seed=random.Random(f"{key}/{draw}").getrandbits(63),
            )
            for key, index in zip(keys, drawn, strict=True)
            for draw in range(size)
        ]
        completions = self.rollouts.write(requests)
        return [
            Group(index, self.examples[index], self.asked[index], tuple(completions[place * size : (place + 1) * size]), key)
            for place, (key, index) in enumerate(zip(keys, drawn, strict=True))
        ]

    def history(self, steps: int) -> list[Group]:
        """All groups of the first steps, those of a process that was killed among them."""
        return [group for step in range(steps) for group in self.written(step)]


def asked_of(backbone: Backbone, examples: Sequence[Example], spec: OnPolicySpec) -> list[tuple[int, ...]]:
    """Prompt ids by example. Raises DataError where one leaves no room for a completion."""
    asked = [backbone.chat_ids(reasoning_prompt(example)) for example in examples]
    place = max(range(len(asked)), key=lambda index: len(asked[index]))
    if len(asked[place]) + spec.max_new_tokens > backbone.context_length:
        fits = len(asked[place]) < backbone.context_length
        way = f"{'Lower it, or shorten' if fits else 'Shorten'} or leave out examples that are so long."
        raise DataError(
            f"A prompt leaves room for max_new_tokens within the {backbone.context_length} tokens of {backbone.name!r}, but the "
            f"longest, {examples[place].id!r}, has {len(asked[place])} and max_new_tokens is {spec.max_new_tokens}. {way}"
        )
    return asked


@contextmanager
def policy(
    backbone: Backbone,
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    spec: OnPolicySpec,
    identity: str,
    directory: Path | None,
) -> Iterator[Policy]:
    """Writes in the precision that a fit computes in, which casts its weights to it anyway."""
    with rollouts(backbone, directory=directory, precision="bfloat16") as writer:
        yield Policy(backbone, adapters, examples, spec, identity, writer)
