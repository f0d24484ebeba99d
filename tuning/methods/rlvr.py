"""Reinforcement learning from verifiable rewards: a completion is worth 1 if the task's own check finds it right, else 0.

No reward for form and no demonstrations, as in AlphaMed (Liu et al., arXiv 2505.17952); on one example, 1-shot RLVR (Wang et al.,
arXiv 2504.20571), most of whose published gain a reward for form alone also reaches. The loss is that of GRPO.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import model_validator

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.spec import Choices
from evaluation.task import Example, Task, first_answer, is_right
from tuning.loop import Progress
from tuning.methods.grpo import GRPO, GRPOSpec
from tuning.methods.method import Fit, Given, Method
from tuning.methods.on_policy import Group, asked_of, policy
from tuning.methods.supervised import identity_of
from tuning.trl_fit import only_lora, require_trl

PARTS = ("accuracy", "format", "random")


class RLVRSpec(GRPOSpec):
    """`reward` format (any answer line) and random (a coin) are the controls: what they gain, accuracy has not earned.

    `examples` one fits a single example: of the first `candidates`, the one whose accuracy varied most over `history_epochs`
    passes of a fit on all of them, which is then thrown away.
    """

    written_first: ClassVar[tuple[str, ...]] = ("candidates", "history_epochs")

    name: Literal["rlvr"] = "rlvr"
    reward: Literal["accuracy", "format", "random"] = "accuracy"
    examples: Annotated[Literal["all", "one"], Choices(("all", "one"))] = "all"
    candidates: int = 16
    history_epochs: int = 4

    @model_validator(mode="after")
    def _chooses(self) -> RLVRSpec:
        if self.candidates < 2 or self.history_epochs < 2:
            raise ValueError(
                f"An example is chosen among 2 candidates or more by the variance over 2 history_epochs or more, but got "
                f"{self.candidates} and {self.history_epochs}."
            )
        return self


class Chosen(NamedTuple):
    """The example with the largest historical variance, and what the fit that showed it cost."""

    place: int  # among the candidates
    variance: float
    num_generated: int
    num_tokens: int  # learnt
    seconds: float  # of its steps


@dataclass(frozen=True)
class RLVR(Method):
    spec: RLVRSpec
    spec_type = RLVRSpec

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        asked_of(backbone, examples if self.spec.examples == "all" else examples[: self.spec.candidates], self.spec)

    def fitted(self, given: Given) -> Fit:
        task = self.required(given.task)
        if only_lora(given.adapters):
            require_trl(self.spec.name)
        started, counts, before = time.monotonic(), dict[str, float](), Chosen(0, 0.0, 0, 0, 0.0)
        if self.spec.examples == "one":
            before = self._chosen(given, task)
            given = given._replace(examples=[given.examples[before.place]])
            counts = {"chosen_example": before.place, "chosen_variance": before.variance}
        counts["prepare_s"] = max(0.0, time.monotonic() - started - before.seconds)  # see tuning.methods.supervised
        done, learner = self._learn(given, task, before.num_generated + before.num_tokens)
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        counts |= self._counts(task, learner.policy.history(done.step))
        num_generated = before.num_generated + learner.policy.num_written(done.step)
        return Fit(numbers, done.num_tokens + before.num_tokens, done.seconds + before.seconds, num_generated, counts)

    def _learn(self, given: Given, task: Task, num_before: int = 0) -> tuple[Progress, GRPO]:
        """What was done, and the learner that knows every group that was written for it."""
        backbone, adapters, spec = given.backbone, given.adapters, self.spec
        identity = identity_of(backbone, adapters, spec, given.examples)
        weights = {name: float(name == spec.reward) for name in PARTS}
        with policy(backbone, adapters, given.examples, spec, identity, given.directory) as writer:
            learner = GRPO(backbone, Stack(adapters), spec, writer, partial(parts_of, task), weights, num_before)
            done = learner.fit(given.on_step, given.on_update, given.directory)
            writer.history(done.step)  # read while there is a writer: a fit that went on has steps that it never saw
        return done, learner

    def _chosen(self, given: Given, task: Task) -> Chosen:
        spec, pool = self.spec, given.examples[: self.spec.candidates]
        steps = -(-len(pool) * spec.history_epochs // spec.prompts_per_step)
        values = {"examples": "all", "reward": "accuracy", "steps": steps, "token_budget": None}
        before = replace(self, spec=spec.model_copy(update=values))
        alike = [deepcopy(adapter) for adapter in given.adapters]  # that begin where these do
        directory = given.directory / "history" if given.directory else None
        done, learner = before._learn(given.only_alive()._replace(adapters=alike, examples=pool, directory=directory), task)
        passes = learner.policy.history(steps)[: len(pool) * spec.history_epochs]  # the last step may begin another
        variances = historical_variance(task, passes, len(pool))
        best = max(range(len(pool)), key=lambda index: variances[index])
        return Chosen(best, variances[best], learner.policy.num_written(steps), done.num_tokens, done.seconds)

    def _counts(self, task: Task, groups: Sequence[Group]) -> dict[str, float]:
        judged = [parts_of(task, group) for group in groups]
        return {
            "groups": len(groups),
            "groups_without_signal": sum(len({parts[self.spec.reward] for parts in group}) == 1 for group in judged),
            "groups_all_right": sum(all(parts["accuracy"] for parts in group) for group in judged),
            "groups_all_wrong": sum(not any(parts["accuracy"] for parts in group) for group in judged),
            "groups_without_an_answer": sum(not any(parts["format"] for parts in group) for group in judged),
        }


def parts_of(task: Task, group: Group) -> list[dict[str, float]]:
    """Of each completion: whether it is right, whether it has an answer line with something in it, and a coin."""
    return [
        {
            "accuracy": float(is_right(task, group.example, completion.text)),
            "format": float(bool(first_answer(completion.text))),
            "random": float(random.Random(f"coin/{group.key}/{place}").random() < 0.5),
        }
        for place, completion in enumerate(group.completions)
    ]


def historical_variance(task: Task, groups: Sequence[Group], count: int) -> list[float]:
    """By example, the variance over the passes of its group's accuracy (1-shot RLVR, section 2)."""
    passes: list[list[float]] = [[] for _ in range(count)]
    for group in groups:
        passes[group.index].append(statistics.fmean(parts["accuracy"] for parts in parts_of(task, group)))
    return [statistics.pvariance(accuracies) for accuracies in passes]
