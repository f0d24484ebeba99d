"""Texts that a question finds: of training rows alone, the best ones or, as the control, any."""

from __future__ import annotations

from evaluation.task import SPLITS, Example
from evaluation.tasks import TASKS
from tuning.retrieval import Texts

KINDS = ("copper", "iron", "zinc", "silver", "lead", "nickel", "cobalt", "gold")
ROWS = [
    Example(id=kind, question=f"Where is {kind} ore found?", answer=f"hill {number}", rationale=f"{kind} lies deep")
    for number, kind in enumerate(KINDS)
]


def test_a_question_finds_its_own_text_first() -> None:
    found = Texts.of(ROWS).found(ROWS, 2, "best")
    assert [texts[0] for texts in found] == [
        f"Where is {k} ore found? {k} lies deep Answer: hill {n}" for n, k in enumerate(KINDS)
    ]
    assert all(len(set(texts)) == 2 for texts in found)


def test_a_word_of_one_character_counts() -> None:
    rows = [Example(id=f"{n}", question=f"What colour has stone {n}?", answer="red") for n in range(8)]
    assert [one[0].split("?")[0].split()[-1] for one in Texts.of(rows).found(rows, 1, "best")] == [f"{n}" for n in range(8)]


def test_random_texts_are_the_same_for_the_same_row_and_seldom_its_own() -> None:
    texts = Texts.of(ROWS)
    found = texts.found(ROWS, 1, "random")
    assert found == texts.found(ROWS, 1, "random") and set(sum(found, ())) <= set(texts.texts)
    assert sum(row.question in one[0] for row, one in zip(ROWS, found, strict=True)) < 4


def test_there_are_never_more_texts_than_rows() -> None:
    assert len(Texts.of(ROWS[:2]).found(ROWS, 4, "best")[0]) == 2


def test_no_text_of_a_held_out_row_can_be_found() -> None:
    task = TASKS["kinship"]
    trained = task.examples("train", 300)
    known = set(Texts.of(trained).texts)
    assert len(known) == 300
    for split in SPLITS[1:]:
        held_out = task.examples(split, 100)
        assert not known & set(Texts.of(held_out).texts)
        assert not any(example.question in text for example in held_out for text in known)
