"""Accuracy by forced budget: the curve, its peak, over- and underthinking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted_engine import Reply, ScriptedEngine, gold, last_value

from adapters.backbone import Backbone
from evaluation.evaluate import Planned, evaluate
from evaluation.measures.budget import BUDGETS, BudgetAccuracy, peak, peaks
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK, MEASURE = FAMILIES["arithmetic"], BudgetAccuracy()


def knows_at_once(example: Example, begun: str) -> Reply:
    """Copies the answer from nowhere: the trace is for show."""
    return Reply(f" {example.answer}\n") if begun.endswith("Answer:") else gold(example, begun)


def spoils(example: Example, begun: str) -> Reply:
    """Reaches the answer, then doubts it and ends with another."""
    whole = f"{example.rationale}\nWait, no.\n0 + 1 = 1\n1 + 1 = 2\n0 + 1 = 1\n0 + 0 = -1\nAnswer: -1"
    return Reply(f" {last_value(begun)}\n") if begun.endswith("Answer:") else Reply(whole[len(begun) :])


def impatient(example: Example, begun: str) -> Reply:
    """Ends after its first step; made to go on, it finishes."""
    first, *rest = example.steps
    if begun.endswith("Answer:"):
        return Reply(f" {last_value(begun)}\n")
    if begun.endswith("W"):
        return Reply("\n" + "\n".join(rest) + "\nAnswer: ")
    return Reply(f"{first}\nAnswer: "[len(begun) :])


def idle(example: Example, begun: str) -> Reply:
    return Reply(" -1\n" if begun.endswith("Answer:") else "Hmm\nAnswer: -1")


@pytest.fixture
def examples() -> list[Example]:
    """Whose answer no earlier step happens to have."""
    return [e for e in TASK.examples("search", 24) if e.answer not in {step.split(" = ")[1] for step in e.steps[:-1]}][:12]


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ScriptedEngine:
    minds = {"noop": gold, "copies": knows_at_once, "spoils": spoils, "impatient": impatient, "idle": idle}
    return ScriptedEngine(backbone, examples, {None: gold, **minds})


def test_who_computes_is_right_once_the_budget_holds_the_chain(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    parts = MEASURE.read(engine, backbone, None, TASK, examples).parts
    assert set(parts["right_at_0"]) == {0.0} and set(parts["right_at_end"]) == {1.0}
    for budget in BUDGETS:
        held = [float(tokens <= budget) for tokens in parts["trace_tokens"]]
        assert all(right >= fits for right, fits in zip(parts[f"right_at_{budget}"], held, strict=True))


def test_who_copies_the_answer_is_right_at_every_budget_and_has_no_peak(
    engine: ScriptedEngine, backbone: Backbone, examples: list[Example]
) -> None:
    row = evaluate(engine, backbone, "copies", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.adapted.values) == {1.0}
    assert row.summary["adapted_peak"] is None and row.summary["base_peak"] is not None


def test_who_spoils_a_reached_answer_overthinks(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    # A budget of 32 tokens holds these chains and not what spoils them; the ends lie beyond it.
    measure = BudgetAccuracy((0, 8, 16, 24, 32, 40, 48, 160))
    row = evaluate(engine, backbone, "spoils", [Planned(measure, TASK, examples, "report")]).rows[0]
    assert row.adapted.part_mean("overthought") == 1.0 and row.adapted.part_mean("right_at_160") == 0.0
    assert row.base.part_mean("overthought") == 0.0
    assert row.summary["peak_change_high"] < 0


def test_who_ends_too_early_underthinks(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "impatient", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.adapted.parts["right_at_end"]) == {0.0}
    assert row.adapted.part_mean("underthought") == 1.0 and math.isnan(row.base.part_mean("underthought"))


def test_who_stopped_computing_loses_at_every_budget(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "idle", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert row.change.high < 0 and row.adapted.mean == 0.0


def test_the_same_writer_has_exactly_no_change(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    row = evaluate(engine, backbone, "noop", [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert set(row.change.per_item) == {0.0}
    assert row.summary["peak_change"] == row.summary["peak_change_low"] == row.summary["peak_change_high"] == 0.0


def test_a_backbone_that_is_right_at_no_budget_cannot_show_a_loss(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: idle})
    found = evaluate(engine, backbone, None, [Planned(MEASURE, TASK, examples, "report")]).rows[0]
    assert found.not_measurable == "the backbone's forced answer is right at no budget"


def test_a_trace_that_did_not_end_is_counted_as_cut(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> None:
    parts = BudgetAccuracy((0, 4, 8)).read(engine, backbone, None, TASK, examples).parts
    assert set(parts["cut"]) == {1.0} and set(parts["trace_tokens"]) == {8.0}


def test_the_peak_is_that_of_a_known_parabola() -> None:
    logs = np.log1p(BUDGETS)
    assert peak(BUDGETS, 1 - 0.02 * (logs - np.log1p(40)) ** 2) == pytest.approx(40)
    assert peak(BUDGETS, logs) == pytest.approx(128)
    assert peak(BUDGETS, -logs) == 0.0
    assert math.isnan(peak(BUDGETS, np.full(5, 0.5)))


def test_the_interval_of_the_peak_covers_the_truth_and_narrows_with_items() -> None:
    rng = np.random.default_rng(0)
    truth = 0.9 - 0.08 * (np.log1p(BUDGETS) - np.log1p(32)) ** 2
    widths = []
    for items in (40, 1000):
        drawn = (rng.random((items, len(BUDGETS))) < truth.clip(0, 1)).astype(float)
        value, low, high = peaks(BUDGETS, drawn, drawn, ["one"] * items, draws=200)["base_peak"]
        assert value is not None and low is not None and high is not None and low <= value <= high
        widths.append(high - low)
    assert widths[1] < widths[0] and low <= peak(BUDGETS, truth.clip(0, 1)) <= high


@pytest.mark.parametrize("budgets", [(0, 16), (16, 0, 32), (0, 0, 16), (-1, 0, 1)])
def test_budgets_that_make_no_curve_are_refused(budgets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three or more token counts in rising order"):
        BudgetAccuracy(budgets)
