"""GRPO on answers and explanations, with literature at hand and without in turns. An extension of ours; RLAG has no such reward.

A completion is worth 1 if its answer is right, and beside that what its own steps tell of the right answer to who has only the
question (tuning.rationality). What was explained with literature at hand must hold without it: it is to be learnt, not copied.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import model_validator

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.spec import Choices, Range
from engine.engine import Engine
from evaluation.task import Example, Task
from tuning.methods.grpo import GRPO, Aggregation, GRPOSpec
from tuning.methods.method import Fit, Given, Method
from tuning.methods.on_policy import Group, Policy, asked_of
from tuning.methods.rlvr import parts_of
from tuning.methods.supervised import identity_of
from tuning.rationality import rationality
from tuning.retrieval import Texts
from tuning.rollouts import WRITER, rollouts
from tuning.trl_fit import only_lora, require_trl


class RLAGGRPOSpec(GRPOSpec):
    """The reward is accuracy + `rationality_weight` * rationality. With 0, without literature and as a sum it is that of rlvr.

    `aggregation` normalize_then_sum compares each part within its group before they are added (GDPO).

    `literature` alternate: of the prompts every second one, and each example's own in turns; never: the control. `retrieval`
    random is another.
    """

    name: Literal["rlag_grpo"] = "rlag_grpo"
    rationality_weight: Annotated[float, Range(0.0, 1.0)] = 0.5
    aggregation: Aggregation = "normalize_then_sum"
    literature: Literal["alternate", "never"] = "alternate"
    num_texts: Annotated[int, Choices((1, 2, 4))] = 2
    retrieval: Literal["best", "random"] = "best"

    @model_validator(mode="after")
    def _weighs(self) -> RLAGGRPOSpec:
        if self.rationality_weight < 0 or self.num_texts < 1:
            raise ValueError(
                f"rationality_weight is at least 0 and num_texts at least 1, but got {self.rationality_weight:g} and "
                f"{self.num_texts}."
            )
        return self


@dataclass(frozen=True)
class RLAGGRPO(Method):
    spec: RLAGGRPOSpec
    spec_type = RLAGGRPOSpec

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        asked_of(backbone, [*examples, *self._with_literature(examples)], self.spec)

    def fitted(self, given: Given) -> Fit:
        task, backbone, adapters, examples = self.required(given.task), given.backbone, given.adapters, given.examples
        if only_lora(adapters):
            require_trl(self.spec.name)
        spec, started = self.spec, time.monotonic()
        identity = identity_of(backbone, adapters, spec, examples)
        # With literature at an odd place, without at the even one before it.
        both = [one for example, other in zip(examples, self._with_literature(examples), strict=True) for one in (example, other)]
        with rollouts(backbone, directory=given.directory) as writer:
            policy = InTurns(backbone, adapters, both, spec, identity, writer)
            judge = Judge(backbone, writer.engine, task, both)
            weights = {"accuracy": 1.0, "rationality": spec.rationality_weight}
            learner = GRPO(backbone, Stack(adapters), spec, policy, judge, weights, aggregation=spec.aggregation)
            prepared_s = time.monotonic() - started
            done = learner.fit(given.on_step, given.on_update, given.directory)
            groups = policy.history(done.step)
            num_written = policy.num_written(done.step)
        right: dict[str, list[float]] = {"plain": [], "augmented": []}
        for group in groups:
            right["augmented" if group.index % 2 else "plain"] += [parts["accuracy"] for parts in parts_of(task, group)]
        counts = {f"right_{name}": sum(values) / len(values) for name, values in right.items() if values}
        counts["groups_without_signal"] = round(sum(done.numbers["without_signal"]) * spec.prompts_per_step)
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        return Fit(
            numbers, done.num_tokens, done.seconds, num_written, {"prepare_s": prepared_s, "groups": len(groups), **counts}
        )

    def _with_literature(self, examples: Sequence[Example]) -> list[Example]:
        if self.spec.literature == "never":
            return list(examples)
        found = Texts.of(examples).found(examples, self.spec.num_texts, self.spec.retrieval)
        return [
            replace(example, context="\n".join(("Related literature:", *texts, *filter(None, (example.context,)))))
            for example, texts in zip(examples, found, strict=True)
        ]


class InTurns(Policy):
    """Asks an example without literature and with it in turns, and so it does from prompt to prompt."""

    def prompts(self, step: int) -> list[int]:
        count, size = self.spec.prompts_per_step, len(self.examples) // 2
        found = []
        for place in range(step * count, (step + 1) * count):
            passed, index = divmod(place, size)
            # One order for all passes: the turn then changes with every pass.
            order = random.Random(f"prompts/{self.spec.seed}").sample(range(size), size)
            found.append(2 * order[index] + (passed + index) % 2)
        return found


@dataclass(frozen=True)
class Judge:
    """Parts of each completion's reward: those that rlvr has, and its rationality to who reads the plain question."""

    backbone: Backbone
    engine: Engine
    task: Task
    examples: Sequence[Example]  # the plain one at every even place

    def __call__(self, group: Group) -> list[Mapping[str, float]]:
        plain = self.examples[group.index // 2 * 2]
        texts = [completion.text for completion in group.completions]
        gained = rationality(self.engine, self.backbone, WRITER, plain, texts)
        judged = parts_of(self.task, replace(group, example=plain))
        return [{**parts, "rationality": gain} for parts, gain in zip(judged, gained, strict=True)]
