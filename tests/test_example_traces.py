"""Example traces: what each step adds, written and read by backbone and adapted model."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from evaluation.example_traces import example_traces, traces_document
from evaluation.measures.information_gain import INFORMATIVE
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 3)


def engine_with(backbone: Backbone, examples: list[Example], mind: Mind) -> ToyEngine:
    engine = ToyEngine(backbone, examples)
    engine.think("fitted", mind)
    return engine


def test_a_mind_that_writes_and_reads_its_steps_climbs_with_each(backbone: Backbone, examples: list[Example]) -> None:
    engine = engine_with(backbone, examples, Mind())
    for example, one in zip(examples, example_traces(engine, backbone, "fitted", TASK, examples), strict=True):
        assert (one.id, one.gold, one.before.steps, one.before.is_right) == (example.id, example.answer, example.steps, True)
        assert len(one.before.by_backbone) == len(example.steps) + 1
        assert all(after - before > INFORMATIVE for before, after in pairwise(one.before.by_backbone))
        assert one.before.by_adapted == ()


def test_an_adapter_that_changes_nothing_has_the_same_staircase(backbone: Backbone, examples: list[Example]) -> None:
    for one in example_traces(engine_with(backbone, examples, Mind()), backbone, "fitted", TASK, examples):
        assert one.after.steps == one.before.steps
        assert one.after.by_backbone == one.after.by_adapted == one.before.by_backbone


def test_a_model_that_writes_no_step_has_no_stair(backbone: Backbone, examples: list[Example]) -> None:
    for one in example_traces(engine_with(backbone, examples, Mind(writes_steps=0)), backbone, "fitted", TASK, examples):
        assert one.after.steps == () and len(one.after.by_backbone) == 1 < len(one.before.by_backbone)


def test_a_model_that_ignores_its_steps_is_flat_in_its_own_reading_alone(backbone: Backbone, examples: list[Example]) -> None:
    for one in example_traces(engine_with(backbone, examples, Mind(reads_steps=False)), backbone, "fitted", TASK, examples):
        assert len(set(one.after.by_adapted)) == 1
        assert one.after.by_backbone[-1] - one.after.by_backbone[0] > INFORMATIVE


def test_a_document_is_json_with_all_that_a_picture_needs(backbone: Backbone, examples: list[Example]) -> None:
    found = example_traces(engine_with(backbone, examples, Mind()), backbone, "fitted", TASK, examples)
    told = json.loads(json.dumps(traces_document("small@1", "tiny", [(TASK.name, "protected", found)])))
    (task,) = told["tasks"]
    assert (task["task"], task["role"], len(task["examples"])) == ("arithmetic", "protected", 3)
    assert tuple(task["examples"][0]["after"]["steps"]) == examples[0].steps and told["informative"] == INFORMATIVE
