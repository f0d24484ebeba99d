"""What is measured on which items."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import DataError, UnknownMeasure
from evaluation.measures import MEASURES
from evaluation.task import Example, Split, question_text
from evaluation.tasks import DOMAINS, FAMILIES, TASKS
from tuning.errors import BadRecipe
from tuning.plan import READ_ALSO, as_asked, likelihood_plan, report_plan, training_examples
from tuning.recipe import Recipe

DOMAIN, BOXES = DOMAINS["icd10-chapter"], FAMILIES["boxes"]


def test_a_report_reads_the_measures_that_it_is_asked_for_beside_the_gates_own() -> None:
    planned = report_plan(DOMAIN, [BOXES], 4, ("trace_length", "generation"))
    assert [p.measure.name for p in planned if p.task is BOXES] == ["generation", "trace_length"]


def test_a_report_reads_the_cheap_measures_unless_it_is_asked() -> None:
    planned = report_plan(DOMAIN, [BOXES], 4)
    assert [p.measure.name for p in planned if p.task is BOXES] == ["generation", *READ_ALSO]


def test_what_is_asked_is_read_of_the_domain_and_of_other_tasks_too() -> None:
    planned = report_plan(DOMAIN, [BOXES, DOMAINS["customs"]], 4, ("trace_length",))
    read = {name: [p.measure.name for p in planned if p.task.name == name] for name in ("icd10-chapter", "boxes", "customs")}
    assert read["icd10-chapter"] == ["choice_accuracy", "generation", "trace_length"]
    assert read["customs"] == ["choice_accuracy", "trace_length"]
    assert len({(p.measure.name, p.task.name) for p in planned}) == len(planned)


def test_a_text_is_read_as_a_text_whatever_is_asked() -> None:
    planned = report_plan(DOMAIN, [TASKS["text"]], 4, ("trace_length",))
    assert [p.measure.name for p in planned if p.task.name == "text"] == ["text_likelihood"]


def test_a_measure_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UnknownMeasure, match="information_gain_self"):
        report_plan(DOMAIN, [BOXES], 4, ("informaton_gain",))


def test_every_measure_is_explained_in_the_documents() -> None:
    text = (Path(__file__).parent.parent / "docs" / "measures.md").read_text()
    said = text.replace("`_self`", "`information_gain_self`")
    for ending in ("_external", "_base_traces", "_gold_traces"):
        said = said.replace(f"`{ending}`", f"`faithfulness{ending}`")
    assert [name for name in MEASURES if f"`{name}`" not in said] == []


def test_training_prompts_list_as_many_choices_as_the_method_wants_and_the_domain_is_read_as_it_is() -> None:
    plain = Recipe(name="icd10", domain="icd10-chapter")
    four = plain.with_values({"method.listed_choices": 4})
    bare, posed = training_examples(plain, DOMAIN)[:9], training_examples(four, DOMAIN)[:9]
    assert [one.answer for one in posed] == [one.answer for one in bare]
    assert not any("Options:" in question_text(one) for one in bare)
    assert all(question_text(one).partition("Options: ")[2].count(";") == 3 for one in posed)
    assert likelihood_plan(four, DOMAIN) == likelihood_plan(plain, DOMAIN)
    assert as_asked(four, DOMAIN)[:9] == bare, "the divergence from the backbone is read of the same prompts under every method"


def test_a_prompt_that_would_list_one_choice_is_refused() -> None:
    with pytest.raises(BadRecipe, match="lists 2 choices or more, but got listed_choices = 1"):
        Recipe(name="icd10", domain="icd10-chapter").with_values({"method.listed_choices": 1})


def test_training_rows_without_choices_to_list_are_refused_by_name() -> None:
    recipe = Recipe(name="sums", domain="icd10-chapter").with_values({"method.listed_choices": 4})
    with pytest.raises(DataError, match="has \\[\\]"):
        training_examples(recipe, Open())


class Open:
    name = "open"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return [Example("1", "Why?", "So.")]
