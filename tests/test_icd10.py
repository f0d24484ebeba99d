"""ICD-10-CM, and customs coding, which has the same shape."""

from collections import Counter

import pytest

from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import customs, icd10
from evaluation.tasks.classification import ClassificationTask, Leaf, Mixture, Table, content_words
from evaluation.tasks.customs import CUSTOMS, CUSTOMS_HEADING, CUSTOMS_SECTION
from evaluation.tasks.icd10 import CHAPTERS, ICD10, ICD10_CATEGORY, ICD10_CHAPTER

WIDE = (ICD10_CHAPTER, CUSTOMS_SECTION)
NARROW = (ICD10_CATEGORY, CUSTOMS_HEADING)


def matched_words(example: Example) -> float:
    """The chance to be right by picking the option that shares the most words with the description."""
    shown = content_words(example.question.splitlines()[0].split(": ", 1)[1])
    assert example.choices is not None
    shared = {choice: len(content_words(choice) & shown) for choice in example.choices}
    best = [choice for choice in example.choices if shared[choice] == max(shared.values())]
    return (example.answer in best) / len(best)


def test_the_tables_hold_thousands_of_codes_in_hundreds_of_groups() -> None:
    assert len(icd10.table().leaves) > 60_000
    assert len({leaf.group for leaf in icd10.table().leaves}) > 1_500
    assert len(customs.table().leaves) > 3_000
    assert len({leaf.group for leaf in customs.table().leaves}) > 800


def test_cholera_is_an_infectious_disease() -> None:
    cholera = next(leaf for leaf in icd10.table().leaves if leaf.code == "A00.1")
    assert cholera.path == ("infectious and parasitic diseases", "Intestinal infectious diseases", "Cholera")
    assert cholera.group == "A00"


def test_horses_are_live_animals() -> None:
    horses = next(leaf for leaf in customs.table().leaves if leaf.code == "010121")
    assert horses.path == ("live animals and animal products", "Animals", "Horses, asses, mules and hinnies")


def test_a_chapter_is_asked_among_all_chapters() -> None:
    for example in ICD10_CHAPTER.examples("search", 50):
        assert example.choices is not None
        assert sorted(example.choices) == sorted(CHAPTERS.values())


@pytest.mark.parametrize("task", (ICD10, CUSTOMS), ids=lambda task: task.name)
def test_no_option_stands_in_the_prompt(task: Mixture) -> None:
    for example in task.examples("search", 50):
        assert example.choices is not None and "Options" not in reasoning_prompt(example)


def test_a_category_is_asked_among_siblings_of_its_chapter() -> None:
    for example in ICD10_CATEGORY.examples("search", 50):
        chapter = example.steps[0].removeprefix("Chapter: ")
        assert example.choices is not None
        assert 4 <= len(example.choices) <= 6
        assert set(example.choices) <= set(icd10.table().narrow_titles[chapter])


def test_the_walk_to_a_category_goes_down_and_the_walk_to_a_chapter_goes_up() -> None:
    for example in ICD10_CATEGORY.examples("train", 30):
        assert example.steps[0].startswith("Chapter: ")
        assert example.steps[-1] == f"Category: {example.answer}"
    for example in ICD10_CHAPTER.examples("train", 30):
        assert example.steps[-1] == f"Chapter: {example.answer}"
        assert example.answer not in example.steps[0]
        assert 2 <= len(example.steps) <= 3


@pytest.mark.parametrize("task", WIDE, ids=lambda task: task.name)
def test_no_chapter_is_asked_for_much_more_often_than_the_others(task: ClassificationTask) -> None:
    answers = Counter(example.answer for example in task.examples("gate", 150))
    assert max(answers.values()) <= 2 * 150 / len(answers)


@pytest.mark.parametrize("task", (*WIDE, *NARROW), ids=lambda task: task.name)
def test_matching_words_is_not_enough(task: ClassificationTask) -> None:
    examples = task.examples("gate", 250)
    assert sum(map(matched_words, examples)) / len(examples) < 0.5


@pytest.mark.parametrize("task", (ICD10, CUSTOMS), ids=lambda task: task.name)
def test_prompts_are_short(task: Mixture) -> None:
    lengths = [len(reasoning_prompt(example)) for example in task.examples("train", 200)]
    assert max(lengths) < 750
    assert sum(lengths) / len(lengths) < 500


@pytest.mark.parametrize("task", (ICD10, CUSTOMS), ids=lambda task: task.name)
def test_half_of_the_examples_ask_for_either_level(task: Mixture) -> None:
    kinds = Counter(example.id.split("/")[0] for example in task.examples("select", 100))
    assert set(kinds.values()) == {50}


def test_an_example_does_not_depend_on_the_seed_that_drew_it() -> None:
    one = {example.id: example for example in ICD10_CHAPTER.examples("gate", 600, seed=1)}
    two = {example.id: example for example in ICD10_CHAPTER.examples("gate", 600, seed=2)}
    assert len(one.keys() & two.keys()) > 5
    assert all(one[id] == two[id] for id in one.keys() & two.keys())


def test_a_description_in_two_groups_is_never_asked() -> None:
    path = ("wide", "middle", "narrow")
    rows = [Leaf("A1", "Pain, unspecified", path, "A"), Leaf("B1", "Pain unspecified", path, "B"), Leaf("B2", "Fever", path, "B")]
    assert [leaf.code for leaf in Table(rows).leaves] == ["B2"]


def test_a_description_that_is_its_group_title_is_never_asked() -> None:
    assert Table([Leaf("A1", "Cholera", ("infections", "gut", "Cholera."), "A")]).leaves == ()
