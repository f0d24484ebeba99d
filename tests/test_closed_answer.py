"""Answers over a closed set: the likeliest candidate, a tie is never right, and guessing is told from knowing."""

from __future__ import annotations

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from evaluation.measures.closed_answer import Belief, Question, at_chance, beliefs
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]
QUESTION = Question((1,), ("a", "b", "c", "d"))


def guesses(right: int, count: int) -> list[Belief]:
    return [Belief((1.0, 0.0, 0.0, 0.0) if place < right else (0.0, 1.0, 0.0, 0.0)) for place in range(count)]


def test_a_tie_is_wrong() -> None:
    assert Belief((0.4, 0.4, 0.2)).answer == 1 and not Belief((0.5, 0.5)).is_right
    assert Belief((0.6, 0.4)).is_right


def test_half_right_of_four_candidates_is_enough_and_less_is_not() -> None:
    assert at_chance([QUESTION] * 400, guesses(200, 400)) == ""
    assert at_chance([QUESTION] * 400, guesses(199, 400)).endswith("not above chance (0.25) by 0.25")


def test_few_items_must_be_further_above_chance_than_many() -> None:
    # Half of eight right: a guesser among four has it one time in nine.
    assert "4 of the 8 answers are right" in at_chance([QUESTION] * 8, guesses(4, 8))
    assert at_chance([QUESTION] * 8, guesses(6, 8)) == ""


def test_an_answer_that_begins_another_does_not_win_by_being_short(backbone: Backbone) -> None:
    example = next(e for e in TASK.examples("search", 40) if len(e.answer) == 2)
    mind = Mind(concludes=lambda example, lines: f"{example.answer}5")
    question = Question.of(backbone, TASK, example, f"{example.answer}5")
    found = beliefs(ToyEngine(backbone, [example], mind), backbone, None, [(question, ())])[0]
    assert question.candidates[found.answer] == f"{example.answer}5"
    assert sum(found.shares) == pytest.approx(1.0)


def test_an_answer_that_is_a_candidate_already_is_no_second_one(backbone: Backbone) -> None:
    example = TASK.examples("search", 1)[0]
    question = Question.of(backbone, TASK, example)
    assert Question.of(backbone, TASK, example, f" {example.answer}.") == question
    assert question.candidates[0] == example.answer and question.place_of(f"{example.answer}.") == 0
