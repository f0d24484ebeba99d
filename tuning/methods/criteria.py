"""Criteria-guided instruction: the rubric of a good explanation, said outright in what is asked and in what is learnt.

Wachsmuth et al. 2024 (arXiv 2403.16084) argue, without an experiment, that models should be instructed with the notions of
quality themselves and not by labelled examples alone. Here that can be put to a test: the same explanations with the same labels,
once under the criteria's names and definitions, once without. The rubric is that of the measures of rationality.
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
from evaluation.rubric import Rubric, load_rubric
from evaluation.task import REASON, Example, Task, question_text, reasoning_prompt
from tuning.batches import Row, check_rationales
from tuning.labelled import Labelled, labelled
from tuning.methods.method import Given
from tuning.methods.supervised import Prepared, Supervised, SupervisedSpec
from tuning.mistakes import Problems, posed_of

LOOKED_AT = 32  # rows, before a sweep
MAX_LABELLED = 4000


class CriteriaSpec(SupervisedSpec):
    """`judged_share` of the rows judge an explanation, the rest explain.

    `guided` false is the control: plain labelled examples.
    """

    name: Literal["criteria"] = "criteria"
    problems: Annotated[Problems, Choices(("domain", "families", "both"))] = "domain"  # whose explanations are judged
    judged_share: Annotated[float, Range(0.2, 0.8)] = 0.5
    guided: bool = True

    @model_validator(mode="after")
    def _some_explain(self) -> CriteriaSpec:
        if not 0 <= self.judged_share < 1:
            raise ValueError(f"judged_share leaves room for answers: 0 <= judged_share < 1, but got {self.judged_share:g}.")
        return self


@dataclass(frozen=True)
class Criteria(Supervised):
    spec: CriteriaSpec
    spec_type = CriteriaSpec

    def check(self, examples: Sequence[Example], task: Task) -> None:
        check_rationales(examples, "rationale", "The method 'criteria'")
        if self.spec.judged_share:
            self.judged(task, examples[:LOOKED_AT], 2 * LOOKED_AT)

    def prepare(self, given: Given) -> Prepared:
        spec, seen, rubric = self.spec, self.spec.steps * self.spec.batch_size, load_rubric()
        explained = self.explained(given.backbone, given.examples[: round(seen * (1 - spec.judged_share))], rubric)
        wanted = min(MAX_LABELLED, round(len(explained) * spec.judged_share / (1 - spec.judged_share)))
        judged = self.judged(self.required(given.task), given.examples, wanted) if wanted else []
        end = int(given.backbone.tokenizer.eos_token_id)
        rows = [
            Row(given.backbone.chat_ids(one.asked(rubric, spec.guided)), (*given.backbone.encode(one.said(rubric)), end))
            for one in judged
        ]
        counts = {f"judged_{criterion.name}": sum(one.criterion == criterion for one in judged) for criterion in rubric.criteria}
        counts |= {"judged_sound": sum(one.share == 1.0 for one in judged), "explained": len(explained)}
        return Prepared([*explained, *rows], counts=counts)

    def explained(self, backbone: Backbone, examples: Sequence[Example], rubric: Rubric) -> list[Row]:
        """The domain's own rationales. Every second one is asked for by the criteria: at test time nobody names them."""
        check_rationales(examples, "rationale", "The method 'criteria'")
        end = int(backbone.tokenizer.eos_token_id)
        asked = [
            guided_prompt(example, rubric) if self.spec.guided and index % 2 == 0 else reasoning_prompt(example)
            for index, example in enumerate(examples)
        ]
        return [
            Row(backbone.chat_ids(prompt), (*backbone.encode(example.chain), end))
            for prompt, example in zip(asked, examples, strict=True)
        ]

    def judged(self, task: Task, examples: Sequence[Example], count: int) -> list[Labelled]:
        """Explanations with their scores, a sound one and a flawed one of each problem, the criteria in turn."""
        rubric, found, tried = load_rubric(), list[Labelled](), max(1, count // 2)
        for number, posed in enumerate(islice(posed_of(task, examples, self.spec.problems, self.spec.seed), tried)):
            rng = random.Random(f"criteria/{self.spec.seed}/{number}/{posed.example.id}")
            turn = number + number // 2  # so that each of two sources in turn meets every criterion
            found += labelled(posed, rubric.criteria[turn % len(rubric.criteria)], rng)
        if not found:
            raise DataError(
                f"Explanations are labelled by what is wrong in them, but of {tried} problems of {task.name!r} none has a "
                "rationale that can be made to miss a criterion. Take rows with rationales and answers that differ, or problems "
                'that know their own mistakes (method.problems = "families").'
            )
        return found


def guided_prompt(example: Example, rubric: Rubric) -> str:
    """The question, every criterion by its name and definition, and the instruction to reason."""
    criteria = "\n".join(f"- {criterion.name.capitalize()}: {criterion.definition}" for criterion in rubric.criteria)
    return f"{question_text(example)}\nExplain your answer so that the explanation meets these criteria:\n{criteria}\n{REASON}"
