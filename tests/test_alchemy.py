"""Alchemy: no algebra stands in for reasoning, and what is held out is never seen."""

from __future__ import annotations

import pytest
from alchemist import apply, read, solve

from evaluation.shifts import shifts_of
from evaluation.task import SPLITS
from evaluation.tasks.alchemy import (
    ALCHEMY,
    ATOMS,
    HELD_OUT_ATOMS,
    HELD_OUT_PAIRS,
    LENGTHS,
    OPERATIONS,
    SIZES,
    has_close_neighbours,
    path,
)

SHIFTED = shifts_of(ALCHEMY)
COUNT = 150


def pairs(operations: list[str]) -> set[tuple[str, str]]:
    return set(zip(operations, operations[1:], strict=False))


def test_no_rotation_is_its_own_inverse() -> None:
    # ROT 13 twice is nothing at all: an answer without a step of reasoning.
    rotations = [operation for name, operation in OPERATIONS.items() if name.startswith("rot")]
    assert len(rotations) == 3
    for operation in rotations:
        assert all(operation(operation(atom)) != atom for atom in ATOMS)


def test_the_shift_goes_to_the_right() -> None:
    assert OPERATIONS["shift"]("ABCD") == "DABC"


@pytest.mark.parametrize("pair", sorted(HELD_OUT_PAIRS))
def test_the_operations_of_a_held_out_pair_do_not_commute(pair: tuple[str, str]) -> None:
    first, second = (OPERATIONS[name] for name in pair)
    assert second(first("ABCD")) != first(second("ABCD"))


def test_a_new_composition_has_another_answer_than_the_order_that_was_trained() -> None:
    for example in SHIFTED["new_composition"].examples("gate", COUNT):
        element, operations = read(example.question)
        places = [place for place in range(len(operations) - 1) if tuple(operations[place : place + 2]) in HELD_OUT_PAIRS]
        assert places
        for place in places:
            found, swapped = element, [*operations]
            swapped[place : place + 2] = reversed(swapped[place : place + 2])
            for operation in swapped:
                found = apply(operation, found)
            assert found != solve(example.question)[-1]


@pytest.mark.parametrize("name", ["", *SHIFTED])
def test_every_problem_can_be_solved_from_its_text_alone(name: str) -> None:
    # An element that lost an atom, or statements whose order was needed, could not.
    task = SHIFTED.get(name, ALCHEMY)
    for example in task.examples("gate", COUNT):
        states = [" ".join(state) for state in solve(example.question)]
        assert [step.split(": ")[1] for step in example.steps] == states[1:]
        assert [step.split(": ")[0] for step in example.steps] == read(example.question)[1]
        assert example.answer == states[-1]


@pytest.mark.parametrize("name", ["", *SHIFTED])
def test_no_chain_comes_back_to_an_element_that_it_left(name: str) -> None:
    for example in SHIFTED.get(name, ALCHEMY).examples("gate", COUNT):
        states = solve(example.question)
        assert len(set(states)) == len(states)


def test_what_is_held_out_never_occurs() -> None:
    for split in SPLITS:
        for example in ALCHEMY.examples(split, COUNT):
            element, operations = read(example.question)
            states = solve(example.question)
            assert not HELD_OUT_ATOMS & set("".join(states))
            assert not any(map(has_close_neighbours, states))
            assert not pairs(operations) & HELD_OUT_PAIRS
            assert len(element) in SIZES and len(operations) in LENGTHS


@pytest.mark.parametrize("name", [name for name, _ in ALCHEMY.variants])
def test_a_variant_is_new_in_its_one_way_on_every_problem(name: str) -> None:
    for example in SHIFTED[name].examples("gate", COUNT):
        element, operations = read(example.question)
        new = {
            "new_atoms": bool(HELD_OUT_ATOMS & set(element)),
            "new_combination": all(map(has_close_neighbours, solve(example.question))),
            "new_composition": bool(pairs(operations) & HELD_OUT_PAIRS),
            "atoms_minus_1": len(element) == 2,
            "atoms_plus_1": len(element) == 6,
            "atoms_plus_2": len(element) == 7,
        }
        assert {variant for variant, found in new.items() if found} == {name}
        assert len(operations) in LENGTHS


def test_what_follows_from_a_false_element_is_the_rest_of_the_chain_applied_to_it() -> None:
    for example in ALCHEMY.examples("train", 40):
        problem = ALCHEMY.problem(example.id)
        for wrong, follows in zip(problem.corrupted, problem.consequences, strict=True):
            assert follows is not None and follows.answer != problem.answer
            chain = [step.split(": ")[0] for step in follows.steps]
            assert " ".join(path(wrong.split(": ")[1].replace(" ", ""), chain)[-1]) == follows.answer
