"""Calibration of choices: what confidence cost, what accuracy cost, and that the two are told apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

import pytest
from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Continuation
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.task import Example, answer_line
from evaluation.tasks import TASKS

BRIER = MEASURES["brier_score"]
TASK = TASKS["icd10"]  # only its name is read


def question(index: int) -> Example:
    return Example(
        f"q{index}", f"Question number {index}.", f"right {index}", (f"right {index}", f"wrong {index}"), group=f"g{index}"
    )


EXAMPLES = [question(index) for index in range(120)]
Scale = Callable[[float], float]


@dataclass
class Sure(IdleEngine):
    """Its margin for the right option is 1 nat three times in four, as often as sigmoid(1) says about; else it is against it."""

    backbone: Backbone
    adapted: Scale

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        prefix, found = len(self.backbone.encode(answer_line("").rstrip())), []
        for asked in continuations:
            said = self.backbone.decode(asked.ids).removeprefix("Answer:").strip()
            kind, _, index = said.partition(" ")
            knows = random.Random(index).random() < 1 / (1 + exp(-1))
            margin = 1.0 if knows else -1.0
            liked = (self.adapted(margin) if profile else margin) * (kind == "right")
            found.append((-9.0,) * prefix + (liked - 30.0,) + (0.0,) * (len(asked.ids) - prefix - 1))
        return found


def row(backbone: Backbone, adapted: Scale, measure: str = "brier_score") -> Row:
    engine = Sure(backbone, adapted)
    return evaluate(engine, backbone, "adapted", [Planned(MEASURES[measure], TASK, EXAMPLES, "report")]).rows[0]


def test_the_scores_of_one_item_by_hand(backbone: Backbone) -> None:
    found = row(backbone, lambda margin: log(3)).adapted  # probabilities of 3/4 and 1/4
    assert set(map(round6, found.values)) == {-0.125}
    assert set(map(round6, found.parts["confidence"])) == {0.75}
    nll = row(backbone, lambda margin: log(3), "candidate_log_probability").adapted
    assert set(map(round6, nll.values)) == {round6(log(0.75))}


def round6(value: float) -> float:
    return round(value, 6)


@pytest.mark.parametrize("measure", ["brier_score", "candidate_log_probability"])
def test_growing_surer_without_growing_righter_is_a_loss(backbone: Backbone, measure: str) -> None:
    found = row(backbone, lambda margin: 4 * margin, measure)
    assert found.change.high < 0
    assert found.adapted.parts["right"] == found.base.parts["right"]


def test_that_loss_is_one_of_confidence_and_of_nothing_else(backbone: Backbone) -> None:
    summary = row(backbone, lambda margin: 4 * margin).summary
    assert summary["adapted_temperature"] == pytest.approx(4 * (summary["base_temperature"] or 0), rel=1e-3)
    assert (summary["adapted_reliability"] or 0) > (summary["base_reliability"] or 0) + 0.03
    assert summary["adapted_resolution"] == pytest.approx(summary["base_resolution"])
    assert summary["rescaled_change"] == pytest.approx(0.0, abs=1e-4)


def test_growing_wronger_is_a_loss_that_no_temperature_mends(backbone: Backbone) -> None:
    found = row(backbone, lambda margin: margin - 0.8)
    assert found.change.high < 0
    flipped = row(backbone, lambda margin: -margin)
    assert flipped.summary["adapted_temperature"] is None and flipped.summary["rescaled_change"] is None


def test_a_tie_is_not_right_and_one_in_two_sure(backbone: Backbone) -> None:
    found = row(backbone, lambda margin: 0.0).adapted
    assert found.part_mean("right") == 0.0 and found.part_mean("confidence") == pytest.approx(0.5)
    assert found.mean == pytest.approx(-0.5)


def test_options_of_different_numbers_are_kept_apart(backbone: Backbone) -> None:
    three = Example("q3", "Third.", "right 3", ("right 3", "wrong 3", "wrong 4"), group="g3")
    found = BRIER.read(Sure(backbone, abs), backbone, "x", TASK, [EXAMPLES[0], three])
    assert found.parts["_option_2"][0] != found.parts["_option_2"][0]
    assert found.values[1] == pytest.approx(-((1 - exp(1) / (exp(1) + 2)) ** 2 + 2 / (exp(1) + 2) ** 2))


def test_the_options_are_no_means_of_the_table(backbone: Backbone) -> None:
    assert set(row(backbone, abs).as_dict()["base_parts"]) == {"confidence", "right", "log_probability"}
