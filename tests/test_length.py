"""Trace length: tokens and steps before the answer, and the change of their log."""

from __future__ import annotations

import math

import pytest
from scripted_engine import Reply, ScriptedEngine, gold

from adapters.backbone import Backbone
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.length import TraceLength
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK, MEASURE = FAMILIES["arithmetic"], TraceLength()


def terse(example: Example, begun: str) -> Reply:
    return Reply(f"{example.steps[-1]}\nAnswer: {example.answer}")


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 12)


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    silent = Reply("Answer: 1")
    endless = Reply("1 + 1 = 2\n" * 60)
    return ScriptedEngine(
        backbone,
        examples,
        {None: gold, "noop": gold, "terse": terse, "silent": lambda *_: silent, "endless": lambda *_: endless},
    )


def test_tokens_and_steps_are_those_before_the_answer(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    parts = MEASURE.read(engine, backbone, None, TASK, examples).parts
    assert parts["num_steps"] == tuple(float(len(example.steps)) for example in examples)
    expected = [len(backbone.encode(f"{example.rationale}\nAnswer:")) - len(backbone.encode("Answer:")) for example in examples]
    assert parts["trace_tokens"] == tuple(map(float, expected))


def test_an_adapter_that_cuts_steps_is_shorter(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "terse", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0
    assert row.summary["length_factor"] == pytest.approx(math.exp(row.change.mean)) and row.summary["length_factor_high"] < 1
    assert row.summary["adapted_steps_median"] == 1.0 and row.summary["adapted_right_long"] == 1.0


def test_a_trace_that_vanished_still_counts(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "silent", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.adapted.values) == {0.0} and row.change.n == len(examples)


def test_replies_that_were_cut_off_are_counted_apart(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    assert set(MEASURE.read(engine, backbone, "endless", TASK, examples).parts["cut"]) == {1.0}
    assert set(MEASURE.read(engine, backbone, None, TASK, examples).parts["cut"]) == {0.0}


def test_the_same_writer_has_exactly_no_change(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0} and row.summary["length_factor_low"] == row.summary["length_factor_high"] == 1.0
