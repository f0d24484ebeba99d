"""The length rule of choice by likelihood, on scores that are given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Continuation
from evaluation.measures import MEASURES
from evaluation.measures.choice import listing
from evaluation.task import Example, answer_line
from evaluation.tasks import TASKS

EXAMPLE = Example("x", "Which?", answer="eye", choices=("eye", "a much longer title of many words"))


@dataclass
class Given(IdleEngine):
    """The first token of every option costs `first` nats, each later one `later`; the answer prefix costs a lot."""

    backbone: Backbone
    first: dict[str, float]
    later: float

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        prefix = len(self.backbone.encode(answer_line("").rstrip()))
        found = []
        for continuation in continuations:
            text = self.backbone.decode(list(continuation.ids)).removeprefix("Answer:").strip()
            later = len(continuation.ids) - prefix - 1
            found.append((-9.0,) * prefix + (-self.first[text],) + (-self.later,) * later)
        return found


@pytest.mark.parametrize(("listed", "right"), [(True, 1.0), (False, 0.0)])
def test_copied_options_are_compared_by_their_sum_and_others_by_their_mean(
    backbone: Backbone, listed: bool, right: float
) -> None:
    long = EXAMPLE.choices[1] if EXAMPLE.choices else ""
    engine = Given(backbone, {"eye": 1.0, long: 2.0}, later=0.01)
    readings = MEASURES["choice_accuracy"].read(engine, backbone, None, TASKS["icd10"], [replace(EXAMPLE, listed=listed)])
    assert readings.values == (right,)
    assert (readings.parts["right_by_sum"], readings.parts["right_by_mean"]) == ((1.0,), (0.0,))


def test_a_listing_has_the_right_choice_in_an_order_that_the_id_alone_decides() -> None:
    example, task = Example("one", "Which?", "c", tuple("abcdefgh"), listed=False), TASKS["icd10-chapter"]
    four = listing(task, example, 4)
    assert four.listed and four.choices is not None and len(set(four.choices)) == 4 and "c" in four.choices
    assert four == listing(task, example, 4)
    places = {(listing(task, replace(example, id=str(one)), 4).choices or ()).index("c") for one in range(40)}
    assert places == {0, 1, 2, 3}


def test_a_listing_has_no_more_choices_than_there_are() -> None:
    example = Example("one", "Which?", "c", ("a", "b", "c"), listed=False)
    assert set(listing(TASKS["icd10-chapter"], example, 4).choices or ()) == {"a", "b", "c"}
