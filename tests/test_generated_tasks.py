"""The generated families, alchemy among them, and their step verifiers."""

import random

import pytest

from evaluation.task import Example, answer_line
from evaluation.tasks import FAMILIES
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.generated import HELD_OUT_LENGTHS, GeneratedTask, normalise_step

every_family = pytest.mark.parametrize("family", (*FAMILIES.values(), ALCHEMY), ids=lambda family: family.name)


def written(steps: tuple[str, ...] | list[str], answer: str) -> str:
    return "\n".join((*steps, answer_line(answer)))


def examples(family: GeneratedTask, count: int = 40) -> list[Example]:
    return family.examples("train", count)


@every_family
def test_the_gold_chain_is_right_in_every_step(family: GeneratedTask) -> None:
    for example in [*examples(family), *family.at_length(*HELD_OUT_LENGTHS).examples("gate", 20)]:
        check = family.check(example, example.chain)
        assert check.all_right
        assert len(check.valid) == len(example.steps)


@every_family
def test_a_corrupted_step_is_found_at_its_place(family: GeneratedTask) -> None:
    for example in examples(family):
        problem = family.problem(example.id)
        assert len(problem.corrupted) == len(problem.steps)
        for place, wrong in enumerate(problem.corrupted):
            steps = [*problem.steps]
            steps[place] = wrong
            check = family.check(example, written(steps, example.answer))
            assert not check.valid[place]
            assert not check.complete
            assert not check.all_right


@every_family
def test_two_swapped_lines_fail(family: GeneratedTask) -> None:
    for example in examples(family):
        steps = list(example.steps)
        if len(steps) == 1 or normalise_step(steps[0]) == normalise_step(steps[1]):
            continue
        steps[0], steps[1] = steps[1], steps[0]
        assert not family.check(example, written(steps, example.answer)).all_right


@every_family
def test_a_missing_step_a_missing_answer_and_a_wrong_answer_fail(family: GeneratedTask) -> None:
    for example in examples(family, 20):
        assert not family.check(example, written(example.steps[:-1], example.answer)).complete
        unanswered = family.check(example, "\n".join(example.steps))
        assert unanswered.complete and not unanswered.answered and not unanswered.all_right
        for rival in family.problem(example.id).rivals:
            assert not family.check(example, written(example.steps, rival)).answer_right


@every_family
def test_the_chain_of_another_problem_fails(family: GeneratedTask) -> None:
    drawn = examples(family)
    for example, other in zip(drawn, drawn[1:], strict=False):
        if example.steps != other.steps:
            assert not family.check(example, other.chain).all_right


@every_family
def test_case_spacing_and_closing_stops_do_not_matter(family: GeneratedTask) -> None:
    rng = random.Random(0)
    for example in examples(family, 20):
        loose = [("  " + step.upper() + rng.choice((".", " ", ""))).replace(" ", "  ") for step in example.steps]
        assert family.check(example, written(loose, f"{example.answer.upper()}.")).all_right


@every_family
def test_the_first_answer_counts_and_whatever_follows_it_is_a_false_step(family: GeneratedTask) -> None:
    for example in examples(family, 20):
        mended = family.check(example, f"{written(example.steps, '999')}\n1 + 1 = 7\nAnswer: {example.answer}")
        assert mended.complete and not mended.answer_right and not mended.all_right
        assert mended.validity == len(example.steps) / (len(example.steps) + 2)
        # Right at first, and then a word too much; empty lines are none.
        assert not family.check(example, f"{example.chain}\n1 + 1 = 7").all_right
        assert family.check(example, f"{example.chain}\n \n").all_right


def test_signs_and_digits_do_matter() -> None:
    assert normalise_step("3 + 4 = 7") != normalise_step("3 - 4 = 7")
    assert normalise_step("Box A , B.") == normalise_step("box a, b")


@every_family
def test_trained_lengths_and_wordings_are_not_the_held_out_ones(family: GeneratedTask) -> None:
    for split in ("train", "gate"):
        drawn = [example.id.split("/") for example in family.examples(split, 80)]
        assert {int(steps) for *_, steps, _ in drawn} == set(family.lengths)
        assert {int(wording) for *_, wording in drawn} == set(range(family.num_wordings - 1))
    assert not set(family.lengths) & set(HELD_OUT_LENGTHS)


@every_family
def test_the_held_out_wording_is_used_only_when_asked_for(family: GeneratedTask) -> None:
    drawn = family.in_held_out_wording().examples("gate", 30)
    assert {example.id.split("/")[-1] for example in drawn} == {str(family.num_wordings - 1)}
    assert not {example.question for example in drawn} & {example.question for example in family.examples("gate", 200)}


@every_family
def test_a_longer_problem_has_as_many_steps_as_asked_for(family: GeneratedTask) -> None:
    for length in HELD_OUT_LENGTHS:
        assert {len(example.steps) for example in family.at_length(length).examples("gate", 20)} == {length}


@every_family
def test_the_rivals_are_wrong_and_differ(family: GeneratedTask) -> None:
    for example in examples(family):
        rivals = family.problem(example.id).rivals
        assert example.answer not in rivals
        assert len(set(rivals)) == len(rivals) >= 1


@every_family
def test_a_false_last_step_has_nothing_after_it(family: GeneratedTask) -> None:
    for example in examples(family):
        problem = family.problem(example.id)
        if problem.consequences:
            assert len(problem.consequences) == len(problem.steps)
            last = problem.consequences[-1]
            assert last is not None and last.steps == ()
            assert f" {last.answer.lower()} " in f" {normalise_step(problem.corrupted[-1])} "


@pytest.mark.parametrize("name", ["arithmetic", "word_problem"])
def test_what_follows_from_a_false_number_is_computed_from_it(name: str) -> None:
    for example in examples(FAMILIES[name]):
        problem = FAMILIES[name].problem(example.id)
        for wrong, follows in zip(problem.corrupted, problem.consequences, strict=True):
            assert follows is not None
            value = int(wrong.split("= ")[1].split()[0])
            for step in follows.steps:
                left, right = step.split(" = ")
                assert left.split()[0] == str(value)
                value = int(right.split()[0])
                assert eval(left) == value  # a sum that the generator wrote
            assert follows.answer == str(value)


def test_what_follows_from_a_false_state_swaps_on_from_it() -> None:
    family = FAMILIES["boxes"]
    for example in examples(family):
        problem = family.problem(example.id)
        for wrong, follows in zip(problem.corrupted, problem.consequences, strict=True):
            assert follows is not None
            state = boxes(wrong)
            for step in follows.steps:
                _, one, two = step.split(":")[0].split()
                state[one], state[two] = state[two], state[one]
                assert boxes(step) == state
            assert follows.answer in state.values()


def boxes(step: str) -> dict[str, str]:
    return dict(pair.split() for pair in step.split(": ")[1].split(", "))


def test_what_follows_from_a_false_kind_walks_the_other_chain_by_the_rules_of_the_question() -> None:
    family = FAMILIES["deduction"]
    for example in examples(family):
        problem = family.problem(example.id)
        for wrong, follows in zip(problem.corrupted, problem.consequences, strict=True):
            assert follows is not None
            links = [step.replace(",", "").split() for step in (wrong, *follows.steps)]  # name is a X so name is (a) Y
            assert all(one[-1] == two[3] for one, two in zip(links, links[1:], strict=False))
            rules = [sentence.split() for sentence in problem.question.split(". ")]
            assert all(any(link[3] in rule and link[-1] in rule for rule in rules) for link in links[1:])
            assert links[-1][-1] == follows.answer != problem.answer


def test_a_false_line_has_consequences_only_where_later_clues_still_place_everybody() -> None:
    family = FAMILIES["ordering"]
    found = [family.problem(example.id) for example in family.at_length(5).examples("train", 40)]
    known = [bool(follows) for problem in found for follows in problem.consequences[:-1]]
    assert any(known) and not all(known)
    for problem in found:
        for wrong, follows in zip(problem.corrupted, problem.consequences, strict=True):
            people = wrong.split(" > ")
            for step in follows.steps if follows else ():
                assert [name for name in step.split(" > ") if name in people] == people
                people = step.split(" > ")
