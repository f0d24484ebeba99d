"""On-policy self-distillation: the adapter writes, and the backbone that has seen the solution says what it would have written.

SDFT (Shenfeld et al. 2026, arXiv 2601.19897) as TRL's SDFTTrainer has it: the teacher reads the prompt with the example's own
solution in it, the student the prompt alone, and the divergence between the two is taken at every token that the student wrote.
The teacher is the backbone with its adapters off (the paper's is a moving average of the student), so that nothing is held twice.

Our own loop does it: TRL's trainer lets nobody else write, and reads token ids, which soft thoughts do not have. Its loss is over
the student's 100 likeliest tokens and a mean of completions' means; here it is over the whole vocabulary, and a mean over all
tokens of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import adapters_off
from adapters.spec import Range
from evaluation.errors import DataError
from evaluation.task import REASON, Example, Task, is_right, question_text
from tuning.batches import Row, collate
from tuning.distance import label_logits
from tuning.loop import run
from tuning.methods.method import Fit, Given, Method
from tuning.methods.on_policy import OnPolicySpec, Policy, asked_of, policy
from tuning.methods.supervised import identity_of, micro_batches, think_ahead

# Legend: N label positions of a batch, V vocabulary

SOLVED = "Here is a right response to this question:\n{solution}\n\nNow answer with a response of your own. " + REASON


class SDFTSpec(OnPolicySpec):
    """`context` is what the teacher sees beside the prompt: other (another example's solution) and none are the controls.

    `distillation_alpha` 0 is KL(teacher || student), 1 is KL(student || teacher), and between them lies the generalised
    Jensen-Shannon divergence, as in TRL.
    """

    name: Literal["sdft"] = "sdft"
    group_size: int = 1  # completions are not compared with each other
    context: Literal["own", "other", "none"] = "own"
    distillation_alpha: Annotated[float, Range(0.0, 1.0)] = 0.5

    @model_validator(mode="after")
    def _between(self) -> SDFTSpec:
        if not 0 <= self.distillation_alpha <= 1:
            raise ValueError(f"distillation_alpha must lie in [0, 1], but got {self.distillation_alpha:g}.")
        return self


@dataclass(frozen=True)
class Taught:
    """One completion, after the prompt as the student reads it and as the teacher does."""

    student: Row
    teacher: Row
    is_right: bool

    def __len__(self) -> int:
        return max(len(self.student), len(self.teacher))


@dataclass(frozen=True)
class SDFT(Method):
    spec: SDFTSpec
    spec_type = SDFTSpec

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        asked_of(backbone, examples, self.spec)
        teacher_prompts(backbone, examples, self.spec)

    def fitted(self, given: Given) -> Fit:
        started, spec, backbone, stack = time.monotonic(), self.spec, given.backbone, Stack(given.adapters)
        prompts = teacher_prompts(backbone, given.examples, spec)
        identity = identity_of(backbone, given.adapters, spec, given.examples)
        with policy(backbone, given.adapters, given.examples, spec, identity, given.directory) as writer:
            think_ahead(backbone, stack, writer.asked)
            learner = Distilled(backbone, stack, spec, writer, prompts, given.task)
            counts = {"prepare_s": time.monotonic() - started}
            done = run(
                backbone, stack, spec, learner, given.on_step, given.on_update, given.directory, identity, writer.num_written
            )
            num_generated = writer.num_written(done.step)
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        return Fit(numbers, done.num_tokens, done.seconds, num_generated, counts)


@dataclass(frozen=True)
class Distilled:
    """A learner of completions, written anew every step by the adapters as they are."""

    backbone: Backbone
    stack: Stack
    spec: SDFTSpec
    policy: Policy
    prompts: Sequence[tuple[int, ...]]  # the teacher's, by example
    task: Task | None

    def batch(self, step: int) -> Sequence[Taught]:
        taught = [
            Taught(row, Row(self.prompts[group.index], row.completion_ids), self._is_right(group.example, completion.text))
            for group in self.policy.write(step)
            for row, completion in zip(group.rows, group.completions, strict=True)
        ]
        return sorted(taught, key=len)

    def rows(self, batch: Sequence[Taught]) -> Sequence[Row]:
        return [taught.student for taught in batch]

    def num_tokens(self, batch: Sequence[Taught]) -> int:
        return sum(len(taught.student) for taught in batch)

    def backward(self, share: Sequence[Taught], batch: Sequence[Taught]) -> dict[str, float]:
        num_labels, total = sum(taught.student.num_labels for taught in batch), 0.0
        for part in micro_batches(share, self.spec.micro_batch_tokens):
            with torch.no_grad(), adapters_off(self.backbone.model):
                teacher_NV = self._log_probs(Stack(()), [taught.teacher for taught in part])
            student_NV = self._log_probs(self.stack, [taught.student for taught in part])
            loss = divergence(student_NV, teacher_NV, self.spec.distillation_alpha).sum() / num_labels
            total += float(loss.detach())
            loss.backward()
        numbers = {"loss": total}
        if self.task is not None:
            numbers["accuracy"] = sum(taught.is_right for taught in share) / len(batch)
        return numbers

    def _log_probs(self, stack: Stack, rows: Sequence[Row]) -> Tensor:
        """Of the distribution that was drawn from, and of the teacher's at the same temperature, as in TRL."""
        with self.backbone.autocast():
            logits_NV, _ = label_logits(self.backbone, collate(self.backbone, stack, rows))
        return log_softmax(logits_NV.float() / self.spec.temperature, -1)

    def _is_right(self, example: Example, text: str) -> bool:
        return self.task is not None and is_right(self.task, example, text)


def divergence(student_NV: Tensor, teacher_NV: Tensor, alpha: float) -> Tensor:
    """Between two log-probabilities, in nats, [N]: 0 is KL(teacher || student), 1 is KL(student || teacher)."""
    if alpha == 0:
        return _kl(teacher_NV, student_NV)
    if alpha == 1:
        return _kl(student_NV, teacher_NV)
    mixture_NV = torch.logaddexp(student_NV + math.log(1 - alpha), teacher_NV + math.log(alpha))
    return (1 - alpha) * _kl(student_NV, mixture_NV) + alpha * _kl(teacher_NV, mixture_NV)


def teacher_prompts(backbone: Backbone, examples: Sequence[Example], spec: SDFTSpec) -> list[tuple[int, ...]]:
    """By example. Raises DataError where one leaves no room for a completion, or there is no other example to take from."""
    if spec.context == "other" and len(examples) < 2:
        raise DataError(f"context = 'other' shows another example's solution, but there are {len(examples)}. Give two or more.")
    away = 0 if spec.context == "own" else 1
    shown = [*examples[away:], *examples[:away]]
    texts = [
        f"{question_text(example)}\n{REASON if spec.context == 'none' else SOLVED.format(solution=other.chain)}"
        for example, other in zip(examples, shown, strict=True)
    ]
    prompts = [backbone.chat_ids(text) for text in texts]
    place = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    longest = len(prompts[place])
    if longest + spec.max_new_tokens > backbone.context_length:
        raise DataError(
            f"The teacher reads question and solution and leaves room for max_new_tokens, {backbone.context_length} tokens in "
            f"all on {backbone.name!r}, but the longest prompt, of {examples[place].id!r}, has {longest} and max_new_tokens is "
            f"{spec.max_new_tokens}. Lower it, or leave out examples that are so long."
        )
    return prompts


def _kl(from_NV: Tensor, to_NV: Tensor) -> Tensor:
    return kl_div(to_NV, from_NV, log_target=True, reduction="none").sum(-1)
