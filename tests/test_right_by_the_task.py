"""What is right is the task's to say: every measure that judges a written answer asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from scripted_engine import Reply, ScriptedEngine

from adapters.backbone import Backbone
from engine.engine import Continuation
from evaluation.measures import MEASURES
from evaluation.measures.budget import BudgetAccuracy
from evaluation.task import Example, Split, first_answer, is_right, is_right_answer

EXAMPLES = [
    Example(f"sum/{number}", f"What is {number} plus 2?", str(number + 2), (str(number + 2), "0"), group=str(number))
    for number in range(8)
]


@dataclass(frozen=True)
class InWords:
    """Right is `said` alone, whatever the gold answer."""

    said: str = "the sum"
    name: str = "in words"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]

    def is_right(self, example: Example, completion: str) -> bool:
        return first_answer(completion) == self.said


class Writes(ScriptedEngine):
    """Every option is as likely as any other."""

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        return [(-1.0,) * (len(asked.ids) - asked.scored_from) for asked in continuations]


def the_sum(example: Example, begun: str) -> Reply:
    return Reply(" the sum\n" if begun.endswith("Answer:") else "Put both together.\nAnswer: the sum")


def gold(example: Example, begun: str) -> Reply:
    return Reply(f" {example.answer}\n" if begun.endswith("Answer:") else f"Put both together.\nAnswer: {example.answer}")


RIGHT = [
    ("generation", "answer_right"),
    ("correction", "slow"),
    ("trace_length", "answer_right"),
    ("conclusion", "right"),
    ("reasoned_choice", "written_right"),
    ("underthinking", "right"),
    ("budget", "right_at_end"),
    ("latent_reasoning", "greedy"),
    ("latent_reasoning", "decoded"),
]


@pytest.mark.parametrize(("measure", "part"), RIGHT)
def test_an_answer_that_the_task_accepts_is_right_and_the_gold_one_that_it_refuses_is_wrong(
    backbone: Backbone, measure: str, part: str
) -> None:
    engine = Writes(backbone, EXAMPLES, {None: the_sum, "gold": gold})
    accepted = MEASURES[measure].read(engine, backbone, None, InWords(), EXAMPLES)
    refused = MEASURES[measure].read(engine, backbone, "gold", InWords(), EXAMPLES)
    assert set(accepted.parts[part]) == {1.0} and set(refused.parts[part]) == {0.0}


def test_an_answer_alone_is_judged_as_the_line_that_it_stands_in() -> None:
    assert is_right_answer(InWords(), EXAMPLES[0], "the sum") and not is_right_answer(InWords(), EXAMPLES[0], "2")
    assert is_right(InWords(), EXAMPLES[0], "So.\nAnswer: the sum\nAnswer: 2")


def test_a_forced_answer_of_one_line_does_not_show_what_answers_of_several_lines_are_worth(backbone: Backbone) -> None:
    grids = [replace(example, answer="1 2\n3 4", choices=None) for example in EXAMPLES]
    found = BudgetAccuracy().read(Writes(backbone, grids, {None: gold}), backbone, None, InWords(), grids)
    assert "one line" in found.reason and all(value != value for value in found.values)
