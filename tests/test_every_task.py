"""What holds for every built-in task."""

from typing import NamedTuple

import pytest

from evaluation.errors import UnknownTask
from evaluation.task import SPLITS, Example, Split, Task, normalise, split_of
from evaluation.tasks import TASKS, task_named
from evaluation.tasks.generated import GeneratedTask

COUNT, ENOUGH = 300, 60  # as many as there are, where a task has fewer
every_task = pytest.mark.parametrize("name", TASKS)


class Drawn(NamedTuple):
    task: Task  # keeps its id from being another's
    examples: tuple[Example, ...]


_DRAWN: dict[tuple[int, Split, int], Drawn] = {}


def drawn(name: str, split: Split, seed: int = 0) -> tuple[Example, ...]:
    """Drawn once for the tests that only look at them: a split of few is what a task takes longest to draw from."""
    task = TASKS[name]
    if (key := (id(task), split, seed)) not in _DRAWN:
        _DRAWN[key] = Drawn(task, tuple(task.examples(split, COUNT, seed)))
    return _DRAWN[key].examples


@every_task
def test_it_is_a_task_under_its_own_name(name: str) -> None:
    assert isinstance(TASKS[name], Task)
    assert TASKS[name].name == name
    assert task_named(name) is TASKS[name]


@every_task
def test_the_same_seed_gives_the_same_examples(name: str) -> None:
    task = TASKS[name]
    for split in SPLITS:
        first = task.examples(split, 20, seed=3)
        assert len(first) == 20
        assert first == task.examples(split, 20, seed=3)
        assert first != task.examples(split, 20, seed=4)


@every_task
def test_no_question_and_no_id_occurs_twice(name: str) -> None:
    for split in SPLITS:
        examples = drawn(name, split)
        assert len(examples) >= ENOUGH
        assert len({example.id for example in examples}) == len({normalise(one.question) for one in examples}) == len(examples)


@every_task
def test_no_question_is_in_two_splits(name: str) -> None:
    owner: dict[str, str] = {}
    for split, seed in [("train", 1), *((split, 0) for split in SPLITS)]:
        for example in drawn(name, split, seed):
            assert owner.setdefault(normalise(example.question), split) == split


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not isinstance(task, GeneratedTask)])
def test_no_group_is_in_two_splits(name: str) -> None:
    for split in SPLITS:
        assert {split_of(example.group) for example in drawn(name, split)} == {split}


@every_task
def test_every_example_has_a_group_a_question_and_an_answer(name: str) -> None:
    for example in drawn(name, "gate"):
        assert example.group.strip()
        assert normalise(example.question)
        assert normalise(example.answer)


@every_task
def test_the_answer_is_one_of_distinct_choices_in_no_fixed_place(name: str) -> None:
    examples = [example for example in drawn(name, "gate") if example.choices is not None]
    places = set()
    for example in examples:
        assert example.choices is not None
        assert len({choice.casefold() for choice in example.choices}) == len(example.choices) >= 2
        places.add(example.choices.index(example.answer))
    assert not examples or len(places) >= 2


@every_task
def test_the_rationale_stops_before_the_answer_line(name: str) -> None:
    for example in drawn(name, "train"):
        assert not any(step.lstrip().startswith("Answer:") for step in example.steps)
        assert example.chain.splitlines()[-1] == f"Answer: {example.answer}"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownTask, match="'icd11' is neither. Built in: icd10, icd10-chapter"):
        task_named("icd11")
