"""Critique fine-tuning: learning to say what is wrong with a response, and answering directly at test time.

CFT (Wang, Yue & Chen 2025, arXiv 2501.17703, eq. 1) learns the critique of a response to a question. Its critics were large
models, here they are programs that find the first wrong step (tuning.mistakes): no critique is false. A small model that reads
critiques alone forgets to answer, so `answer_share` of the rows are the domain's own, asked as they are at test time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

from pydantic import model_validator

from adapters.backbone import Backbone
from adapters.spec import Choices, Range
from evaluation.errors import DataError
from evaluation.task import Example, Task
from tuning.batches import Row, check_rationales, rows_of
from tuning.critiques import Critique
from tuning.methods.method import Given
from tuning.methods.supervised import Prepared, Supervised, SupervisedSpec
from tuning.mistakes import Problems, astray, first_wrong, gold, posed_of

LOOKED_AT = 32  # rows, before a sweep
MAX_CRITIQUES = 4000


class CritiqueSpec(SupervisedSpec):
    """`problems`: what the critics read. `target` and `prompt` are those of sft, for the rows that answer.

    `shuffled` is the control: every critique stands by a response that it is not about.
    """

    name: Literal["critique"] = "critique"
    problems: Annotated[Problems, Choices(("domain", "families", "both"))] = "domain"
    answer_share: Annotated[float, Range(0.2, 0.8)] = 0.5
    target: Annotated[Literal["answer", "rationale", "mixed"], Choices(("answer", "rationale", "mixed"))] = "answer"
    prompt: Annotated[Literal["reasoning", "matching"], Choices(("reasoning", "matching"))] = "reasoning"
    shuffled: bool = False

    @model_validator(mode="after")
    def _some_of_each(self) -> CritiqueSpec:
        if not 0 <= self.answer_share < 1:
            raise ValueError(f"answer_share leaves room for critiques: 0 <= answer_share < 1, but got {self.answer_share:g}.")
        return self


@dataclass(frozen=True)
class CritiqueTuning(Supervised):
    spec: CritiqueSpec
    spec_type = CritiqueSpec

    def check(self, examples: Sequence[Example], task: Task) -> None:
        check_rationales(examples, self.spec.target)
        self.critiques(task, examples[:LOOKED_AT], 2 * LOOKED_AT)

    def prepare(self, given: Given) -> Prepared:
        spec, seen = self.spec, self.spec.steps * self.spec.batch_size
        num_answers = round(seen * spec.answer_share)
        answers = rows_of(given.backbone, given.examples[:num_answers], spec.target, spec.prompt)
        wanted = round(len(answers) * (1 - spec.answer_share) / spec.answer_share) if answers else min(seen, MAX_CRITIQUES)
        critiques = self.critiques(self.required(given.task), given.examples, wanted)
        counts = {
            "critiques_right": sum(critique.is_right for critique in critiques),
            "critiques_wrong": sum(not critique.is_right for critique in critiques),
            "answers": len(answers),
        }
        return Prepared([*answers, *self.rows(given.backbone, critiques)], counts=counts)

    def critiques(self, task: Task, examples: Sequence[Example], count: int) -> list[Critique]:
        """Two of every problem, of a right response and of a wrong one: the question does not tell which it will be.

        A pair of which the critic finds the wrong one right, or the right one wrong, is left out. DataError where none is left.
        """
        found: list[Critique] = []
        tried = max(1, count // 2)
        for number, posed in enumerate(islice(posed_of(task, examples, self.spec.problems, self.spec.seed), tried)):
            rng = random.Random(f"critique/{self.spec.seed}/{number}/{posed.example.id}")
            wrong = astray(posed.task, posed.example, posed.others, rng)
            pair = [
                Critique(posed.example, response, first_wrong(posed.task, posed.example, response))
                for response in (gold(posed.example), wrong)
                if response is not None
            ]
            if [critique.is_right for critique in pair] == [True, False]:
                found += pair
        if not found:
            raise DataError(
                f"A critic learns from right and wrong responses, but of {tried} problems of {task.name!r} it finds none whose "
                "own rationale is right and a false one wrong. Take rows with rationales and answers that differ, or problems "
                'that know their own mistakes (method.problems = "families").'
            )
        return found

    def rows(self, backbone: Backbone, critiques: Sequence[Critique], held_out: bool = False) -> list[Row]:
        """One a critique; held out: in the wordings that no fit learns."""
        rng, end = random.Random(f"wordings/{self.spec.seed}"), int(backbone.tokenizer.eos_token_id)
        asked = [backbone.chat_ids(critique.asked(rng, held_out)) for critique in critiques]
        said = [(*backbone.encode(critique.said(rng, held_out)), end) for critique in critiques]
        if self.spec.shuffled:
            order = rng.sample(range(len(said)), len(said))
            giver = dict(zip(order, order[1:] + order[:1], strict=True))
            said = [said[giver[index]] for index in range(len(said))]
        return [Row(ids, completion) for ids, completion in zip(asked, said, strict=True)]
