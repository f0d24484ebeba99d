"""Self-training on own samples: several to a question, and only the right ones are learnt.

One round is rejection-sampled fine-tuning on what the backbone wrote, or the adapter that the fit goes on from. In further rounds
the adapter of the round before writes, and each round fits anew, as in STaR (Zelikman et al. 2022, arXiv 2203.14465, section 3),
whose rationalisation is here as well: where no sample was right, the answer is given as a hint, and the trace that leads to it is
learnt without the hint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import model_validator

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.spec import Choices, Range
from engine.engine import Completion, GenerationRequest
from evaluation.errors import DataError
from evaluation.task import REASON, Example, Task, comparable, is_right, question_text, reasoning_prompt
from tuning.batches import Row
from tuning.methods.method import Given
from tuning.methods.supervised import Prepared, Rows, Supervised, SupervisedSpec, identity_of, learnt
from tuning.rollouts import WRITER, Rollouts, has_begun, rollouts, room_for

MAX_NEW_TOKENS = 128
MAX_PER_QUESTION = 2  # different right samples that are learnt: easy questions have many, and would crowd out the hard ones
HINT = "{question}\nThe answer is {answer}. Show the steps that lead to it.\n{reason}"


class STaRSpec(SupervisedSpec):
    """`keep` any is the control: as many samples of every question, right or wrong."""

    written_first: ClassVar[tuple[str, ...]] = ("num_questions", "samples", "num_replay")

    name: Literal["star"] = "star"
    samples: Annotated[int, Choices((2, 4, 8))] = 4  # to a question
    temperature: Annotated[float, Range(0.6, 1.2)] = 1.0
    rounds: Annotated[int, Choices((1, 2, 3))] = 1
    rationalise: Annotated[bool, Choices((False, True))] = False
    num_questions: int = 128
    keep: Literal["right", "any"] = "right"

    @model_validator(mode="after")
    def _samples(self) -> STaRSpec:
        least = {"samples": 1, "rounds": 1, "num_questions": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, but got {getattr(self, name)}.")
        if not 0 < self.temperature <= 2:
            raise ValueError(f"Samples differ only at a temperature above 0, and at most 2, but got {self.temperature:g}.")
        return self

    def num_asked(self, num_written: int = 0) -> int:
        """Questions: no more than the tokens pay for that are left, where every sample of every round is as long as it may be."""
        if self.token_budget is None:
            return self.num_questions
        each = self.rounds * (self.samples + self.rationalise) * MAX_NEW_TOKENS
        return max(1, min(self.num_questions, (self.token_budget - num_written) // each))


class Sampled(NamedTuple):
    """A question and what was written to it. `hinted` is the trace to its answer, where it was given away and helped."""

    example: Example
    finished: Sequence[Completion]  # different ones, in the order in which they were drawn
    right: Sequence[Completion]
    hinted: Completion | None = None


@dataclass(frozen=True)
class STaR(Supervised):
    spec: STaRSpec
    spec_type = STaRSpec

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        check_prompts(backbone, examples[: self.spec.num_asked()])

    def prepare(self, given: Given) -> Prepared:
        spec, done = self.spec, Prepared([])
        adapters, directory = list[Adapter](), given.kept_in("star")
        if has_begun(given.backbone, given.adapters):
            adapters = list(given.adapters)
            directory = self._kept_in(given, adapters, 0)
        for number in range(1, spec.rounds + 1):
            with rollouts(given.backbone, adapters, directory, given.alive) as writer:
                groups = self._written(given, writer, number, WRITER if adapters else None)
            tally, last = counted(groups), number == spec.rounds
            done = done._replace(
                rows=self._kept(given, groups, number),
                num_generated=done.num_generated + writer.num_used,
                num_new=done.num_new + writer.num_generated,
                counts={**done.counts, **{name if last else f"round_{number}_{name}": value for name, value in tally.items()}},
            )
            if last:
                break
            adapters = [deepcopy(adapter) for adapter in given.adapters]  # which are still as their own fit begins
            directory = self._kept_in(given, adapters, number, done.rows)
            bounded = spec.model_copy(update={"token_budget": self._budget(given, number)})
            fit = learnt(
                given.only_alive()._replace(adapters=adapters, directory=directory),
                bounded,
                Rows.drawn(given.backbone, Stack(adapters), bounded, done.rows, given.replay),
                done.rows,
                given.num_written + done.num_generated + done.num_tokens,
            )
            done = done._replace(num_tokens=done.num_tokens + fit.num_tokens, seconds=done.seconds + fit.seconds)
        return done

    def _budget(self, given: Given, number: int) -> int | None:
        """What all rounds up to this one may use: what the replay left is shared out evenly."""
        spec, before = self.spec, given.num_written
        return spec.token_budget and before + (spec.token_budget - before) * number // spec.rounds

    def _kept_in(self, given: Given, adapters: Sequence[Adapter], number: int, rows: Sequence[Row] = ()) -> Path | None:
        """Where a round's fit, and what these very adapters write after it, is kept."""
        digest = identity_of(given.backbone, adapters, self.spec, [number, *rows])
        return given.directory / f"round-{number}-{digest[:16]}" if given.directory else None

    def _written(self, given: Given, writer: Rollouts, number: int, profile: str | None) -> list[Sampled]:
        """Every question with its samples, and those without a right one with a hint, where that is wanted."""
        spec, task, backbone = self.spec, self.required(given.task), given.backbone
        examples = given.examples[: spec.num_asked(given.num_written)]
        check_prompts(backbone, examples)
        asked = []
        for example in examples:
            ids = backbone.chat_ids(reasoning_prompt(example))
            room = room_for(backbone, ids, MAX_NEW_TOKENS)
            for sample in range(spec.samples):
                seed = seed_of(spec.seed, number, example.id, sample)
                asked.append(GenerationRequest(ids, profile, room, temperature=spec.temperature, seed=seed))
        written = writer.write(asked)
        groups = [
            grouped(task, example, written[index * spec.samples : (index + 1) * spec.samples])
            for index, example in enumerate(examples)
        ]
        return self._hinted(given, writer, profile, groups) if spec.rationalise else groups

    def _hinted(self, given: Given, writer: Rollouts, profile: str | None, groups: Sequence[Sampled]) -> list[Sampled]:
        backbone, asked = given.backbone, dict[int, GenerationRequest]()
        for index, group in enumerate(groups):
            example = group.example
            hint = HINT.format(question=question_text(example), answer=example.answer, reason=REASON)
            ids = backbone.chat_ids(hint)
            room = room_for(backbone, ids, MAX_NEW_TOKENS)
            if not group.right and room:
                asked[index] = GenerationRequest(ids, profile, room, temperature=0.0)
        found = list(groups)
        for index, written in zip(asked, writer.write(list(asked.values())), strict=True):
            if grouped(self.required(given.task), groups[index].example, [written]).right:
                found[index] = groups[index]._replace(hinted=written)
        return found

    def _kept(self, given: Given, groups: Sequence[Sampled], number: int) -> list[Row]:
        rows = []
        for group in groups:
            prompt_ids = given.backbone.chat_ids(reasoning_prompt(group.example))
            learnt_from_it = list(group.finished if self.spec.keep == "any" else group.right)[:MAX_PER_QUESTION]
            if not group.right and group.hinted:
                learnt_from_it = [group.hinted]
            rows += [Row(prompt_ids, sample.token_ids) for sample in learnt_from_it]
        if not rows:
            first = "the adapter that it began from" if has_begun(given.backbone, given.adapters) else "the backbone"
            who = first if number == 1 else f"the adapter of round {number - 1}"
            raise DataError(
                f"Self-training learns from samples that are right, but none of the {self.spec.samples} that {who} wrote to each "
                f"of {len(groups)} questions was. Take more samples (method.samples), give the answer as a hint "
                "(method.rationalise = true), or begin from an adapter that was fitted to the domain (adapter.warm_start)."
            )
        return rows


def grouped(task: Task, example: Example, written: Sequence[Completion]) -> Sampled:
    """A sample that was cut off is not learnt, whatever it says; two that say the same are one."""
    finished: dict[str, Completion] = {}
    for sample in written:
        if sample.finish_reason == "stop":
            finished.setdefault(comparable(sample.text), sample)
    different = list(finished.values())
    return Sampled(example, different, [sample for sample in different if is_right(task, example, sample.text)])


def counted(groups: Sequence[Sampled]) -> dict[str, float]:
    return {
        "groups": len(groups),
        "groups_without_right": sum(not group.right for group in groups),
        "groups_without_wrong": sum(len(group.right) == len(group.finished) > 0 for group in groups),
        "different_samples": sum(len(group.finished) for group in groups),
        "different_right": sum(len(group.right) for group in groups),
        "rationalised": sum(group.hinted is not None for group in groups),
    }


def check_prompts(backbone: Backbone, examples: Sequence[Example]) -> None:
    """Raises DataError for a question that leaves no room to reply."""
    lengths = {example.id: len(backbone.chat_ids(reasoning_prompt(example))) for example in examples}
    long = {name: length for name, length in lengths.items() if length >= backbone.context_length}
    if long:
        name, length = next(iter(long.items()))
        raise DataError(
            f"A question leaves room for a reply in the {backbone.context_length} tokens of {backbone.name!r}, but "
            f"{len(long)} of {len(examples)} do not; the first, {name!r}, has {length}. Shorten its question or context, or "
            "leave it out."
        )


def seed_of(seed: int, number: int, name: str, sample: int) -> int:
    """A sample's own, whatever else is written beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{name}/{sample}".encode()).digest()[:6])
