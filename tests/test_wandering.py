"""Repeated lines, loops, and conclusions that contradict their own trace."""

from __future__ import annotations

import math

import pytest
from scripted_engine import Reply, ScriptedEngine

from adapters.backbone import Backbone
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.wandering import Conclusion, NewSteps, derived_value, revisitation, self_loop, unfaithful
from evaluation.task import Example
from evaluation.tasks import FAMILIES, ICD10, TASKS
from evaluation.tasks.generated import GeneratedTask

TASK = FAMILIES["boxes"]
GENERATED = [task for task in TASKS.values() if isinstance(task, GeneratedTask)]


def computes(example: Example, begun: str) -> Reply:
    return Reply(example.chain)


def contradicts(example: Example, begun: str) -> Reply:
    """Writes the right trace and then another answer."""
    return Reply(f"{example.rationale}\nAnswer: none of them")


def circles(example: Example, begun: str) -> Reply:
    return Reply(f"{example.steps[0]}\n" * 7 + f"Answer: {example.answer}")


def silent(example: Example, begun: str) -> Reply:
    return Reply(f"Answer: {example.answer}")


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 12)


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    minds = {"noop": computes, "contradicts": contradicts, "circles": circles, "silent": silent}
    return ScriptedEngine(backbone, examples, {None: computes, **minds})


@pytest.mark.parametrize("family", GENERATED, ids=lambda family: family.name)
def test_the_gold_trace_of_every_family_derives_its_answer(family: GeneratedTask) -> None:
    for example in family.examples("gate", 40):
        assert unfaithful(family, example, example.steps, example.answer) == 0.0
        for rival in family.problem(example.id).rivals:
            assert unfaithful(family, example, example.steps, rival) == 1.0


def test_who_writes_the_right_trace_and_another_answer_contradicts_it_always(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    measure = Conclusion(max_new_tokens=256)
    row = evaluate(engine, backbone, "contradicts", [Planned(measure, TASK, examples, "report")]).rows[0]
    assert set(row.base.parts["unfaithful"]) == {0.0} and set(row.adapted.parts["unfaithful"]) == {1.0}
    assert row.change.high < 0


def test_a_wrong_trace_with_its_own_conclusion_is_faithful(examples: list[Example]) -> None:
    wrong = TASK.problem(examples[0].id).corrupted
    said = derived_value(TASK, examples[0], wrong)
    assert said is not None and unfaithful(TASK, examples[0], wrong, said) == 0.0


def test_without_a_trace_there_is_nothing_to_contradict(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    for measure in (Conclusion(), NewSteps()):
        row = evaluate(engine, backbone, "silent", [Planned(measure, TASK, examples, "report")]).rows[0]
        assert all(map(math.isnan, row.adapted.values)) and row.not_measurable.startswith("no reply holds")


def test_an_unanswered_trace_is_no_contradiction(examples: list[Example]) -> None:
    assert math.isnan(unfaithful(TASK, examples[0], examples[0].steps, None))


def test_who_goes_in_circles_is_flagged(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    measure = NewSteps(max_new_tokens=400)
    row = evaluate(engine, backbone, "circles", [Planned(measure, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0
    assert set(row.adapted.parts["revisitation"]) == {6 / 7} and set(row.adapted.parts["self_loop"]) == {1.0}
    assert set(row.base.parts["revisitation"]) == set(row.base.parts["self_loop"]) == {0.0}


@pytest.mark.parametrize("measure", [Conclusion(), NewSteps()])
def test_the_same_writer_has_exactly_no_change(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example], measure: Conclusion | NewSteps
) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(measure, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0}


def test_lines_that_the_gold_trace_repeats_too_are_no_revisits() -> None:
    assert revisitation(["a", "b", "A."]) == pytest.approx(1 / 3)
    assert revisitation(["a", "b", "a"], gold=["a", "b", "a"]) == 0.0
    assert math.isnan(revisitation([]))


def test_a_loop_is_four_lines_in_a_row_that_occur_three_times() -> None:
    assert self_loop(list("abcd") * 3) == 1.0
    assert self_loop(list("abcd") * 2) == 0.0
    assert self_loop(["a"] * 6) == 1.0 and self_loop(["a"] * 5) == 0.0


def test_other_tasks_conclude_with_the_option_named_last_or_the_last_equation() -> None:
    listed = Example(id="x", question="Which?", answer="ear diseases", choices=("ear diseases", "diseases", "eye diseases"))
    steps = ("It is not of the eye diseases.", "So it belongs to the Ear Diseases.")
    assert derived_value(ICD10, listed, steps) == "ear diseases"
    open_one = Example(id="y", question="How many?", answer="7")
    assert derived_value(ICD10, open_one, ("3 + 2 = 5", "so 5 + 2 = 7 in all")) == "7"
    assert derived_value(ICD10, open_one, ("I think so.",)) is None
