"""The search tasks: mazes, arrangements and tallies of growing depth."""

from __future__ import annotations

import itertools
import re

import pytest

from evaluation.tasks import SEARCHES
from evaluation.tasks.generated import GeneratedTask
from evaluation.tasks.search import SEARCH_DEPTHS

every_search = pytest.mark.parametrize("family", SEARCHES.values(), ids=lambda family: family.name)


@every_search
def test_the_gold_chain_is_right_in_every_step_and_a_corrupted_step_is_found(family: GeneratedTask) -> None:
    for example in family.examples("train", 60):
        problem = family.problem(example.id)
        assert family.check(example, example.chain).all_right
        assert len(problem.corrupted) == len(problem.steps)
        for place, wrong in enumerate(problem.corrupted):
            steps = [*problem.steps[:place], wrong, *problem.steps[place + 1 :]]
            check = family.check(example, "\n".join((*steps, f"Answer: {example.answer}")))
            assert not check.valid[place] and not check.all_right


@every_search
def test_two_swapped_steps_fail(family: GeneratedTask) -> None:
    for example in family.examples("train", 30):
        steps = [example.steps[1], example.steps[0], *example.steps[2:]]
        assert not family.check(example, "\n".join((*steps, f"Answer: {example.answer}"))).all_right


@every_search
def test_depths_and_wordings_are_swept_and_the_last_wording_is_held_out(family: GeneratedTask) -> None:
    drawn = family.examples("gate", 120)
    assert {family.length(example.id) for example in drawn} == set(SEARCH_DEPTHS)
    assert {int(example.id.split("/")[-1]) for example in drawn} == {0, 1, 2}
    assert {example.id[-1] for example in family.in_held_out_wording().examples("gate", 20)} == {"3"}


@every_search
def test_the_rivals_are_wrong_and_differ(family: GeneratedTask) -> None:
    for example in family.examples("train", 60):
        rivals = family.problem(example.id).rivals
        assert example.answer not in rivals and len(set(rivals)) == len(rivals) >= 2


def test_the_path_of_a_maze_goes_through_doors_and_every_door_before_it_was_tried() -> None:
    for example in SEARCHES["maze"].examples("train", 60):
        doors = {
            room: (one, two)
            for room, one, two in re.findall(r"(\w)(?: leads to| go to| opens to|:) (\w)(?: and| or|,) (\w)\b", example.question)
        }
        path, order = example.answer.split(), []
        for room, onward in itertools.pairwise(path):
            order += list(doors[room][: doors[room].index(onward) + 1])
        assert [step.split()[1].rstrip(":") for step in example.steps] == order
        assert len(path) == SEARCHES["maze"].length(example.id) + 1


def test_arrangements_are_in_order_and_none_is_left_out() -> None:
    for example in SEARCHES["arrangements"].examples("train", 30):
        listed = [step.split(": ")[1] for step in example.steps]
        every = [" ".join(order) for order in itertools.permutations(sorted(listed[0].split()))]
        assert listed == every[: len(listed)] and example.answer == listed[-1]


def test_a_tally_counts_what_the_row_holds() -> None:
    for example in SEARCHES["tally"].examples("train", 30):
        named = [step.split()[1].rstrip(":") for step in example.steps]
        assert len(named) == 2 * SEARCHES["tally"].length(example.id)
        assert int(example.answer) in {named.count(thing) for thing in {*named, "none"}}
