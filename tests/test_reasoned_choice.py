"""Choice after reasoning: it sees what the written steps do for the answer, and direct choice does not."""

from __future__ import annotations

import math

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from evaluation.measures.choice import ChoiceAccuracy
from evaluation.measures.reasoned_choice import ReasonedChoice
from evaluation.tasks import FAMILIES, TASKS

SHORT = FAMILIES["arithmetic"].at_length(2)
EXAMPLES = SHORT.examples("search", 12)


def read(backbone: Backbone, mind: Mind, measure: ReasonedChoice | ChoiceAccuracy) -> tuple[float, dict[str, float]]:
    found = measure.read(ToyEngine(backbone, EXAMPLES, mind), backbone, None, SHORT, EXAMPLES)
    return found.mean, {name: found.part_mean(name) for name in found.parts}


def test_steps_that_are_written_and_read_make_the_right_option_likelier(backbone: Backbone) -> None:
    accuracy, parts = read(backbone, Mind(), ReasonedChoice())
    _, without = read(backbone, Mind(writes_steps=0), ReasonedChoice())
    assert accuracy == 1.0 and parts["step_validity"] == parts["written_right"] == parts["parsed"] == 1.0
    assert parts["margin"] > without["margin"] and without["trace_tokens"] == 0.0


def test_who_does_not_read_steps_gains_nothing_by_writing_them(backbone: Backbone) -> None:
    deaf = Mind(reads_steps=False)
    _, reasoned = read(backbone, deaf, ReasonedChoice())
    _, direct = read(backbone, deaf, ChoiceAccuracy())
    assert reasoned["margin"] == pytest.approx(direct["margin"])


def test_without_a_verifier_the_steps_are_not_judged(backbone: Backbone) -> None:
    task = TASKS["icd10-chapter"]
    examples = task.examples("search", 2)
    found = ReasonedChoice().read(ToyEngine(backbone, examples), backbone, None, task, examples)
    assert all(map(math.isnan, found.parts["step_validity"])) and set(found.values) == {1.0}
