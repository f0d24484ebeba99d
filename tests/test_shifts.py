"""Shifts: the twin of a problem differs in one way, and can be answered as the problem can."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from evaluation.shifts import DISTRACTORS, shifts_of
from evaluation.task import Example, normalise
from evaluation.tasks import FAMILIES, SEARCHES
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.generated import GeneratedTask

TASKS = {**FAMILIES, **SEARCHES, ALCHEMY.name: ALCHEMY}
FORMAT = ("casing", "spacing", "distractor", "order")
CASES = [(task, name) for task in TASKS.values() for name in shifts_of(task)]
every_shift = pytest.mark.parametrize(("task", "name"), CASES, ids=lambda value: value if isinstance(value, str) else value.name)


def twins(task: GeneratedTask, name: str, count: int = 30) -> list[tuple[Example, Example]]:
    shifted = shifts_of(task)[name]
    return [(example, shifted.example(example.id)) for example in task.examples("gate", count)]


@every_shift
def test_the_gold_chain_of_a_twin_is_right_in_every_step(task: GeneratedTask, name: str) -> None:
    shifted = shifts_of(task)[name]
    for example, twin in twins(task, name):
        assert shifted.check(twin, twin.chain).all_right
        assert twin.question != example.question
        assert twin.id == example.id


@every_shift
def test_a_shifted_task_draws_problems_of_its_own(task: GeneratedTask, name: str) -> None:
    shifted = shifts_of(task)[name]
    drawn = shifted.examples("gate", 10)
    assert len(drawn) == 10 == len({example.question for example in drawn})
    assert all(shifted.check(example, example.chain).all_right for example in drawn)


@pytest.mark.parametrize(("task", "name"), [case for case in CASES if case[1] in FORMAT])
def test_a_format_shift_leaves_the_chain_and_takes_no_word_away(task: GeneratedTask, name: str) -> None:
    for example, twin in twins(task, name):
        assert twin.chain == example.chain
        before, after = (Counter(normalise(each.question).split()) for each in (example, twin))
        assert before <= after
        assert (before == after) == (name != "distractor")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_casing_and_spacing_change_nothing_else(task: GeneratedTask) -> None:
    for name in ("casing", "spacing"):
        for example, twin in twins(task, name):
            assert twin.question.lower().split() == example.question.lower().split()


def test_the_order_is_shifted_where_it_says_nothing() -> None:
    # The steps of a sum have an order; where things lie at first, and dates that name each other, have none.
    assert {name for name, task in TASKS.items() if "order" in shifts_of(task)} == {"boxes", "calendar", "alchemy"}


@pytest.mark.parametrize("name", ["boxes", "calendar", "alchemy"])
def test_another_order_has_the_same_statements_at_the_same_places(name: str) -> None:
    for example, twin in twins(TASKS[name], "order"):
        movable = TASKS[name].problem(example.id).movable
        assert sorted(re.findall("|".join(map(re.escape, movable)), twin.question)) == sorted(movable)
        rests = {re.sub("|".join(map(re.escape, movable)), "...", each.question) for each in (example, twin)}
        assert len(rests) == 1


def test_a_boxs_swaps_stay_in_their_order() -> None:
    for example, twin in twins(TASKS["boxes"], "order"):
        count = len(TASKS["boxes"].problem(example.id).movable)
        assert re.split(r"(?<=\.) ", example.question)[count:] == re.split(r"(?<=\.) ", twin.question)[count:]


@pytest.mark.parametrize("task", (*FAMILIES.values(), ALCHEMY), ids=lambda task: task.name)
def test_a_length_is_beyond_what_the_task_draws(task: GeneratedTask) -> None:
    by_shift = {
        "steps_minus_1": min(task.lengths) - 1,
        "steps_plus_1": max(task.lengths) + 1,
        "steps_plus_2": max(task.lengths) + 2,
    }
    for name, length in by_shift.items():
        assert (name in shifts_of(task)) == (length > 0)
        for _, twin in twins(task, name) if length else ():
            assert len(twin.steps) == length


@pytest.mark.parametrize("task", FAMILIES.values(), ids=FAMILIES)
def test_the_twin_in_held_out_wording_is_the_same_problem(task: GeneratedTask) -> None:
    for example, twin in twins(task, "wording"):
        assert twin.chain == example.chain
    assert "wording" not in shifts_of(task.in_held_out_wording())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_distractor_says_nothing_that_could_be_part_of_a_problem(task: GeneratedTask) -> None:
    said = {word for sentence in DISTRACTORS for word in normalise(sentence).split()} - {"the", "for", "it"}
    assert all(len(word) > 2 for word in said)
    for example in task.examples("gate", 60):
        problem = task.problem(example.id)
        told = (*problem.steps, *problem.facts, problem.answer, *problem.rivals)
        assert not said & set(normalise(" ".join(told)).split())
        assert not said & set(normalise(problem.question).split())


@every_shift
def test_the_same_example_has_the_same_twin(task: GeneratedTask, name: str) -> None:
    assert twins(task, name, 5) == twins(task, name, 5)
