"""q_w: how fast accuracy decays with depth."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scripted_engine import Reply, Script, ScriptedEngine

from adapters.backbone import REASONER, Backbone
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.search import SystematicSearch, decay, interval
from evaluation.task import Example
from evaluation.tasks import ICD10, SEARCHES

TASK, MEASURE = SEARCHES["maze"], SystematicSearch(max_new_tokens=400)


def keeping(q: float) -> object:
    """Solves a problem of depth d with probability q^(d-1): each level but the first is lost with probability 1 - q."""

    def script(example: Example, begun: str) -> Reply:
        depth = TASK.length(example.id)
        right = random.Random(example.id).random() < q ** (depth - 1)
        return Reply(example.chain if right else f"{example.steps[0]}\nAnswer: {example.answer}")

    return script


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("search", 150)


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    minds: dict[str | None, Script] = {None: keeping(0.95), "noop": keeping(0.95), "wanders": keeping(0.6)}
    minds["lost"] = lambda *_: Reply("Answer: A")
    return ScriptedEngine(session_backbone, examples, minds)


def test_the_fit_finds_a_known_q_and_a_loss_at_every_depth_alike_does_not_move_it() -> None:
    depths = np.repeat([2, 3, 4, 5, 6], 10_000)
    draws = np.random.default_rng(0).random(len(depths))
    assert decay(depths, draws < 0.8 ** (depths - 1.0)) == pytest.approx(0.8, abs=0.01)
    assert decay(depths, draws < 0.7 * 0.8 ** (depths - 1.0)) == pytest.approx(0.8, abs=0.01)
    assert decay(depths, np.ones(len(depths))) == 1.0


def test_at_the_floor_there_is_no_decay_to_read() -> None:
    # A slope through zeros would be flat, and a model that solves nothing would look perfectly systematic.
    depths = np.repeat([2, 3, 4, 5], 20)
    assert math.isnan(decay(depths, np.zeros(80)))
    assert decay(depths, (depths == 2).astype(float)) < 0.05


def test_few_items_that_agree_at_every_depth_bound_no_change_of_q() -> None:
    depths, before = np.repeat([2.0, 3.0, 4.0], 4), np.ones(12)
    assert interval(depths, before, (depths < 4).astype(float)) == (None, None)
    low, high = interval(depths, before, (np.arange(12) < 9).astype(float))  # 3 of 4 lost at the last depth
    assert low is not None and low < 0 == high


def test_an_adapter_that_loses_levels_is_flagged_by_its_q(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "wanders", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0
    assert row.summary["base_q_w"] == pytest.approx(0.95, abs=0.08) and row.summary["adapted_q_w"] < 0.8
    assert row.summary["q_w_high"] < 0 and row.summary["q_w_low"] <= row.summary["q_w_change"] <= row.summary["q_w_high"]
    assert row.summary["base_p_6"] > row.summary["adapted_p_6"]


def test_the_answer_without_its_steps_is_no_search(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    found = MEASURE.read(engine, backbone, "wanders", TASK, examples)
    assert set(found.parts["answer_right"]) == {1.0} and found.mean < 0.6
    assert found.part_mean("unfaithful") > 0.3  # one step, and an answer that it does not derive


def test_a_lost_adapter_has_no_q_but_its_loss_is_seen(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "lost", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0 and row.summary["adapted_q_w"] is None and row.summary["q_w_change"] is None
    assert row.summary["unfaithful_change"] is None


def test_a_backbone_that_finds_nothing_cannot_show_a_loss(backbone: Backbone, examples: list[Example]) -> None:
    lost = ScriptedEngine(backbone, examples, {None: lambda *_: Reply("Answer: A"), "found": keeping(0.95)})  # type: ignore[dict-item]
    row = evaluate(lost, backbone, "found", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.not_measurable == "the backbone is right on 0% of the problems of maze: less than 10% shows no loss"
    assert math.isnan(row.change.mean) and not row.summary


def test_the_same_writer_has_exactly_no_change(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0}
    assert {row.summary[f"{name}_{end}"] for name in ("q_w", "revisitation", "unfaithful") for end in ("low", "high")} == {0.0}


def test_one_depth_is_refused(engine: ScriptedEngine, backbone: Backbone) -> None:
    flat = TASK.at_length(4)
    with pytest.raises(DataError, match="3 depths or more.*plateau or on the floor"):
        MEASURE.read(engine, backbone, None, flat, flat.examples("search", 8))


def test_a_task_without_depth_is_refused(engine: ScriptedEngine, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="needs a generated task.*'icd10'"):
        MEASURE.read(engine, backbone, None, ICD10, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_the_reasoner_solves_no_search_task_and_none_is_measurable_on_it(name: str) -> None:
    reasoner, task = Backbone.load(REASONER, device="cpu"), SEARCHES[name]
    found = MEASURE.read(TorchEngine(reasoner, max_rows=64), reasoner, None, task, task.examples("gate", 15))
    assert found.part_mean("answered") == 1.0 and "less than 10% shows no loss" in found.reason
