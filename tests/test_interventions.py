"""What is done to traces: mistakes that the executor knows, filler of equal length, other orders, others' traces, other words."""

from __future__ import annotations

import pytest

from adapters.backbone import Backbone
from evaluation.measures.interventions import MIDDLE, mistake_in, paraphrases, shuffled, swapped
from evaluation.staircase import filler, states
from evaluation.task import Example, same_answer
from evaluation.tasks import FAMILIES, TASKS
from evaluation.tasks.generated import GeneratedTask, normalise_step

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)


@every_family
def test_a_mistake_is_false_stands_in_the_middle_and_changes_the_answer(family: GeneratedTask) -> None:
    for example in family.examples("search", 40):
        mistake = mistake_in(family, example)
        if mistake is None:
            continue
        place = example.steps.index(mistake.step)
        assert MIDDLE[0] <= (place + 1) / len(example.steps) <= MIDDLE[1]
        assert not family.check(example, "\n".join((*example.steps[:place], mistake.wrong))).valid[place]
        assert not same_answer(mistake.answer, example.answer)
        assert mistake.begun(example.steps) == (*example.steps[:place], mistake.wrong)


@pytest.mark.parametrize("name", ["arithmetic", "word_problem", "calendar", "deduction"])
def test_every_item_of_these_families_has_a_mistake(name: str) -> None:
    assert all(mistake_in(FAMILIES[name], example) for example in FAMILIES[name].examples("search", 40))


def test_a_family_whose_facts_end_at_the_mistake_has_none() -> None:
    assert not any(mistake_in(FAMILIES["kinship"], example) for example in FAMILIES["kinship"].examples("search", 40))


def test_a_task_without_an_executor_has_no_mistake() -> None:
    task = TASKS["grammar"]
    assert mistake_in(task, task.examples("search", 1)[0]) is None


def test_a_trace_that_does_not_take_the_step_cannot_be_spoilt_there() -> None:
    family = FAMILIES["arithmetic"]
    mistake = mistake_in(family, family.examples("search", 1)[0])
    assert mistake is not None and mistake.begun(("first we think", "then we say")) is None


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_filler_has_as_many_tokens_as_asked_and_ends_a_line(backbone: Backbone, count: int) -> None:
    found = filler(backbone, count)
    assert len(found) == count and backbone.decode(found).endswith("\n")
    assert not any(char.isalnum() for char in backbone.decode(found))


def test_a_shuffled_trace_has_the_same_steps_in_another_order_and_always_the_same_one() -> None:
    trace = ("a", "b", "c")
    found = shuffled(trace, "item")
    assert found is not None and found != trace and sorted(found) == sorted(trace)
    assert shuffled(trace, "item") == found
    assert shuffled(("a",), "item") is None and shuffled(("a", "a"), "item") is None


def item(answer: str) -> Example:
    return Example(id=answer, question=f"What makes {answer}?", answer=answer)


def test_a_swapped_trace_is_the_nearest_in_length_that_does_not_state_the_answer() -> None:
    traces = [("1 + 1 = 2",), ("2 + 2 = 4",), ("3 + 3 = 6", "6 + 1 = 7"), ("9 + 9 = 18",)]
    found = swapped(traces, [6, 6, 12, 7], [item(answer) for answer in ("2", "4", "7", "18")])
    assert found == [traces[3], traces[0], traces[3], traces[0]]


def test_there_is_no_swapped_trace_where_every_other_one_states_the_answer() -> None:
    traces = [("A coin",), ("B coin",), ()]
    assert swapped(traces, [2, 2, 0], [item("coin")] * 3) == [None] * 3


def test_a_number_inside_another_number_is_not_stated() -> None:
    assert states(("1 + 1 = 2",), "2") and not states(("10 + 10 = 20",), "2")


@every_family
def test_a_paraphrase_changes_the_text_and_not_the_steps(family: GeneratedTask) -> None:
    for example in family.examples("search", 40):
        stops, *words = paraphrases(example.steps)
        assert stops != example.steps and [normalise_step(s) for s in stops] == [normalise_step(s) for s in example.steps]
        for said in words:
            assert len(said) == len(example.steps) and paraphrases(said)
            # Names, numbers and things stay as they are.
            assert all(states((one,), word) for one, step in zip(said, example.steps, strict=True) for word in kept(step))


def kept(step: str) -> list[str]:
    words = step.replace(":", " ").replace(",", " ").split()
    return [word for word in words if word.isdigit() or (word[0].isupper() and word not in ("Swap", "The"))]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("7 + 5 = 12", "7 plus 5 equals 12"),
        ("The mother of Ada is Bill", "Ada's mother is Bill"),
        ("Ann > Bob > Cara", "Ann above Bob above Cara"),
        ("Swap A B: A key, B coin", "Exchange A B: A key, B coin"),
        ("Rex is a wumpus, so Rex is red", "Rex is a wumpus, therefore Rex is red"),
    ],
)
def test_the_rules_reword(step: str, said: str) -> None:
    assert (said,) in paraphrases((step,))


def test_a_step_that_a_rule_could_not_give_back_is_left_alone() -> None:
    assert paraphrases(("3 plus 4 + 5 = 12",))[-1] == ("3 plus 4 + 5 equals 12",)
