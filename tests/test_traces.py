"""Tampered traces: swaps that leak nothing and change no marginal, and filler of equal length."""

from __future__ import annotations

from collections import Counter

import pytest

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.task import Example, comparable
from evaluation.tasks import TASKS
from tuning.traces import BUCKET, filled, swapped

DOMAINS = ["icd10", "icd10-chapter", "arithmetic", "kinship"]


@pytest.mark.parametrize("name", DOMAINS)
def test_a_swapped_trace_is_anothers_and_does_not_state_the_answer(backbone: Backbone, name: str) -> None:
    rows = TASKS[name].examples("train", 3 * BUCKET // 2)
    made = swapped(backbone, rows)
    givers = {row.rationale: row for row in rows}
    for before, after in zip(rows, made, strict=True):
        assert (after.id, after.question, after.answer) == (before.id, before.question, before.answer)
        assert after.rationale != before.rationale and after.rationale is not None
        assert comparable(givers[after.rationale].answer) != comparable(after.answer)
        assert f" {comparable(after.answer)} " not in f" {comparable(after.rationale)} "


def test_swapping_keeps_the_traces_as_a_whole_and_nearly_every_length(backbone: Backbone) -> None:
    rows = TASKS["icd10"].examples("train", 4 * BUCKET)
    made = swapped(backbone, rows)
    assert Counter(row.rationale for row in made) == Counter(row.rationale for row in rows)

    def length(row: Example) -> int:
        return len(backbone.encode(row.rationale or ""))

    off = [abs(length(after) - length(before)) / length(before) for before, after in zip(rows, made, strict=True)]
    assert sorted(off)[len(off) // 2] < 0.1


def test_a_swap_is_the_same_every_time_and_another_under_another_seed(backbone: Backbone) -> None:
    rows = TASKS["arithmetic"].examples("train", 40)
    assert swapped(backbone, rows, 0) == swapped(backbone, rows, 0) != swapped(backbone, rows, 1)


def test_rows_that_share_one_answer_cannot_be_swapped(backbone: Backbone) -> None:
    rows = [Example(str(n), f"{n}?", "yes", rationale=f"{n} is so") for n in range(4)]
    with pytest.raises(DataError, match="among 4 rows no swap keeps every answer out. Take more rows"):
        swapped(backbone, rows)


@pytest.mark.parametrize("name", DOMAINS)
def test_filler_has_as_many_steps_and_tokens_as_the_trace_and_none_of_its_words(backbone: Backbone, name: str) -> None:
    rows = TASKS[name].examples("train", 12)
    for before, after in zip(rows, filled(backbone, rows), strict=True):
        assert len(backbone.encode(after.chain)) == len(backbone.encode(before.chain))
        assert len(after.steps) == len(before.steps)
        assert comparable(after.rationale or "") == "" and after.answer == before.answer
