"""Underthinking: right thoughts that were left, by the answers forced after each of them."""

from __future__ import annotations

import math

import pytest
from scripted_engine import Reply, Script, ScriptedEngine, gold, last_value

from adapters.backbone import Backbone
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.underthinking import Underthinking, thought_ends
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK, MEASURE = FAMILIES["arithmetic"], Underthinking(max_trace_tokens=200)


def spoiling(second_thought: str) -> object:
    def script(example: Example, begun: str) -> Reply:
        whole = f"{example.rationale}\n{second_thought}0 + 0 = -1\nAnswer: -1"
        return Reply(f" {last_value(begun)}\n") if begun.endswith("Answer:") else Reply(whole[len(begun) :])

    return script


def hopeless(example: Example, begun: str) -> Reply:
    return Reply(" -1\n" if begun.endswith("Answer:") else "0 + 0 = -1\n0 + 0 = -1\nAnswer: -1")


@pytest.fixture
def examples() -> list[Example]:
    return [e for e in TASK.examples("search", 24) if e.answer not in {step.split(" = ")[1] for step in e.steps[:-1]}][:12]


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    minds: dict[str | None, Script] = {
        None: gold,
        "noop": gold,
        "switches": spoiling("Wait, no.\n"),
        "drifts": spoiling("0 - 1 = -1\n"),
        "hopeless": hopeless,
    }
    return ScriptedEngine(backbone, examples, minds)


def test_a_right_thought_that_is_left_scores_the_share_of_the_trace_after_it(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    found = MEASURE.read(engine, backbone, "switches", TASK, examples)
    for example, value, score in zip(examples, found.values, found.parts["score"], strict=True):
        kept = len(backbone.encode(f"{example.rationale}\n"))
        total = len(backbone.encode(f"{example.rationale}\nWait, no.\n0 + 0 = -1\n"))
        assert score == pytest.approx(1 - kept / total) == -value
    assert set(found.parts["left"]) == {1.0}
    assert found.parts["by_switch"] == found.parts["score"]


def test_without_a_switch_word_only_the_steps_tell(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    parts = MEASURE.read(engine, backbone, "drifts", TASK, examples).parts
    assert min(parts["score"]) > 0 and set(parts["by_switch"]) == set(parts["switches_per_1000_tokens"]) == {0.0}


def test_an_adapter_that_leaves_right_thoughts_is_flagged(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "switches", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0 and row.base.mean == 0.0


def test_who_is_never_right_is_not_measurable_and_does_not_look_steadfast(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "hopeless", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert all(map(math.isnan, row.adapted.values)) and row.not_measurable == "no forced answer is right anywhere in a trace"
    assert set(row.adapted.parts["score"]) == {0.0}  # the paper's, which alone would say that all is well


def test_a_right_answer_has_no_score_to_average(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    found = MEASURE.read(engine, backbone, None, TASK, examples)
    assert set(found.values) == {0.0} and all(map(math.isnan, found.parts["score"]))


def test_the_same_writer_has_exactly_no_change(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0}


def test_thoughts_end_where_a_line_or_a_sentence_does_and_another_follows() -> None:
    text = "It is 3.5 now. But wait.\n\nThen 4\nend.\n"
    assert [text[end:].split()[0] for end in thought_ends(text)] == ["But", "Then", "end."]
    assert thought_ends("\none\n") == []
