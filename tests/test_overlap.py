"""Overlap: copies are found, template text is not mistaken for one."""

import pytest

from evaluation.errors import Overlap
from evaluation.overlap import Fingerprints, check_overlap, many
from evaluation.task import Example
from evaluation.tasks import TASKS

STORY = (
    "The old lighthouse keeper climbed the narrow stairs every evening to light the lamp, and on clear nights he could see "
    "the fishing boats returning slowly to the harbour below the cliffs."
)


def row(id: str, question: str, answer: str = "yes", context: str | None = None, rationale: str | None = None) -> Example:
    return Example(id=id, question=question, answer=answer, context=context, rationale=rationale, group=id)


def other_rows(count: int = 20) -> list[Example]:
    return [row(f"other/{index}", f"What is the capital of province number {index}?") for index in range(count)]


def test_rows_that_share_nothing_pass() -> None:
    check_overlap(other_rows(), [row("gate/1", STORY)])


def test_the_same_question_in_other_case_and_punctuation_is_refused_by_name() -> None:
    with pytest.raises(Overlap, match=r"1 of 2 do \(1 in their whole text, 0 in runs of 13 words\): row 'train/7'.*'gate/2'"):
        check_overlap([*other_rows(), row("train/7", "Is water wet?")], [row("gate/1", STORY), row("gate/2", "is WATER wet")])


def test_a_long_text_with_one_changed_word_is_refused() -> None:
    changed = STORY.replace("fishing", "sailing")
    with pytest.raises(Overlap, match=r"0 in their whole text, 1 in runs of 13 words\): row 'train/1'"):
        check_overlap([*other_rows(), row("train/1", STORY)], [row("gate/1", changed)])


def test_a_held_out_question_inside_a_training_rationale_is_refused() -> None:
    with pytest.raises(Overlap, match="'train/1'"):
        check_overlap([*other_rows(), row("train/1", "Tell me a story.", rationale=STORY)], [row("gate/1", STORY)])


def test_a_shared_context_under_another_question_is_refused() -> None:
    with pytest.raises(Overlap):
        check_overlap([row("train/1", "Who climbs?", context=STORY), *other_rows()], [row("gate/1", "When?", context=STORY)])


def test_a_shared_passage_of_less_than_most_of_the_text_passes() -> None:
    start = " ".join(STORY.split()[:15])
    rest = "and then something else happened that nobody in the village had expected, since the lamp had never failed before that"
    check_overlap([*other_rows(), row("train/1", STORY)], [row("gate/1", f"{start} {rest}")])


def test_a_sentence_that_every_question_shares_is_template_text() -> None:
    frame = "Read the following statement with care, weigh every word, then say whether the claim made in it is true: {}"
    train = [row(f"train/{index}", frame.format(f"fact {word}")) for index, word in enumerate("abcdefghijklmnop")]
    check_overlap(train, [row("gate/1", frame.format("fact z"))])


def test_a_copy_is_found_however_often_its_row_was_repeated() -> None:
    train = [*other_rows(), *(row(f"train/{index}", STORY) for index in range(30))]
    with pytest.raises(Overlap):
        check_overlap(train, [row("gate/1", STORY.replace("lamp", "fire"))])


def test_numbers_alone_do_not_make_a_row_of_a_template_its_own() -> None:
    frame = "We begin at {} and in turn go up by {} and go down by {} and go up by {}. Where do we end?"
    train = [row(f"train/{index}", frame.format(index, index + 1, index + 2, index + 3)) for index in range(40)]
    check_overlap(train, [row("gate/1", frame.format(99, 8, 9, 10))])


@pytest.mark.parametrize("name", TASKS)
def test_the_built_in_tasks_raise_no_false_alarm(name: str) -> None:
    for count in (100, 500):
        check_overlap(TASKS[name].examples("train", count), TASKS[name].examples("gate", 200))


@pytest.mark.parametrize("name", ["word_problem", "deduction", "icd10", "text"])
def test_a_leaked_row_of_a_built_in_task_is_found(name: str) -> None:
    leaked = TASKS[name].examples("gate", 100)[40]
    with pytest.raises(Overlap, match="1 of 100 do"):
        check_overlap([*TASKS[name].examples("train", 300), leaked], TASKS[name].examples("gate", 100))


def test_rows_that_are_known_only_by_their_hashes_still_find_the_copy() -> None:
    train = Fingerprints.of([*other_rows(), row("train/1", STORY)])
    assert train.num_rows == 21
    with pytest.raises(Overlap, match="known only by its hash"):
        check_overlap(train, [row("gate/1", STORY)])


def test_template_text_needs_three_rows_in_a_small_set_and_a_share_in_a_large_one() -> None:
    assert [many(number) for number in (4, 20, 100, 1_000, 10_000)] == [3, 5, 10, 10, 50]
