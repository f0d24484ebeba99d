"""Latent reasoning: what CoT-decoding finds and greedy decoding does not."""

from __future__ import annotations

import pytest
from scripted_engine import Reply, Script, ScriptedEngine

from adapters.backbone import Backbone
from engine.decoding.cot_decoding import CoTDecoding
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.latent import LatentReasoning, holds_step
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK, MEASURE = FAMILIES["arithmetic"], LatentReasoning(CoTDecoding(num_branches=4))


def mind(at_once: bool, behind: bool) -> Script:
    """`at_once`: the greedy reply is right; `behind`: so are the replies that begin with another token, and they reason."""

    def script(example: Example, begun: str) -> Reply:
        greedy = not begun or begun[0] == "A"
        answer = example.answer if (at_once if greedy else behind) else "-1"
        if begun.endswith("Answer:"):
            return Reply(f" {answer}\n", 0.5 if greedy else 0.9)
        if greedy:
            return Reply(f"Answer: {answer}"[len(begun) :], 0.5, ("x", "y", "z"))
        return Reply(f"\n{example.rationale}\n" if behind else "\n")

    return script


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 12)


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    minds = {"noop": mind(False, True), "hollow": mind(False, False), "shown": mind(True, True)}
    return ScriptedEngine(backbone, examples, {None: mind(False, True), **minds})


def test_reasoning_that_greedy_decoding_hides_is_found(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    found = MEASURE.read(engine, backbone, None, TASK, examples)
    assert set(found.values) == set(found.parts["decoded"]) == {1.0} and set(found.parts["greedy"]) == {0.0}
    assert set(found.parts["stepped"]) == {0.75}
    assert found.part_mean("margin") > found.part_mean("greedy_margin")


def test_an_adapter_that_lost_the_latent_ability_is_flagged(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "hollow", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0 and row.summary["decoded_high"] < 0 and row.summary["greedy_change"] == 0.0
    assert row.adapted.part_mean("stepped") == 0.0


def test_an_adapter_that_shows_the_ability_closes_the_gap_and_loses_nothing(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "shown", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.adapted.mean == 0.0 and row.summary["decoded_change"] == 0.0 and row.summary["greedy_low"] > 0


def test_the_same_writer_has_exactly_no_change(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0}


def test_a_backbone_without_the_ability_cannot_show_its_loss(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: mind(False, False), "same": mind(False, False)})
    row = evaluate(engine, backbone, "same", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.not_measurable == "the backbone's CoT-decoding is right on no item"


def test_a_step_is_the_problems_an_arithmetic_one_or_a_connective(examples: list[Example]) -> None:
    boxes = FAMILIES["boxes"].examples("search", 1)[0]
    assert holds_step(FAMILIES["boxes"], boxes, boxes.steps[0])
    assert holds_step(TASK, examples[0], "We have 3 * 4 = 12") and holds_step(TASK, examples[0], "It is so because")
    assert not holds_step(TASK, examples[0], "It is 12, also 13")
