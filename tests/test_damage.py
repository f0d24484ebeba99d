"""A contract over all measures, on models that really reason: real damage is flagged, and an adapter of zeros never is.

What each adapter was fitted to is known, so that what a measure must say of it is known as well.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from damaged import CONTROLS, DAMAGES, ELSEWHERE, STORY_READER, Bench, Plain

from adapters.backbone import REASONER, Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.base_cache import BaseCache
from evaluation.continual import ContinualMatrix
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.knockout import grouped, knock_out
from evaluation.measure import Readings
from evaluation.measures import MEASURES
from evaluation.statistics import paired_change
from evaluation.tasks import TASKS
from evaluation.tasks.alchemy import ALCHEMY


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> BaseCache:
    return BaseCache(tmp_path_factory.mktemp("cache"), "float32")


@pytest.fixture(scope="module")
def bench(testbed: Backbone, cache: BaseCache) -> Bench:
    return Bench(TorchEngine(testbed, max_rows=64), cache)


@pytest.fixture(scope="module")
def story_bench(cache: BaseCache) -> Bench:
    return Bench(TorchEngine(Backbone.load(str(STORY_READER), device="cpu", dtype=torch.float32), max_rows=64), cache)


@pytest.fixture
def able(request: pytest.FixtureRequest, measure: str) -> Bench:
    found: Bench = request.getfixturevalue(CONTROLS[measure].able)
    return found


def read(bench: Bench, measure: str, damage: str | None = None) -> Row:
    """Under the damage that the measure must flag, or under another; read once, whoever asks."""
    control, backbone = CONTROLS[measure], bench.engine.backbone
    key = measure, damage or control.damage
    if key not in bench.rows:
        task = control.task(backbone)
        planned = Planned(control.measure or MEASURES[measure], task, task.examples("gate", control.count), "report")
        bench.rows[key] = evaluate(bench.engine, backbone, bench.name_of(key[1]), [planned], bench.cache).rows[0]
    return bench.rows[key]


def test_every_measure_has_its_control() -> None:
    assert {*CONTROLS, *ELSEWHERE} == set(MEASURES)


@pytest.mark.parametrize("measure", CONTROLS)
def test_real_damage_is_flagged_with_its_interval_clear_of_zero(able: Bench, measure: str) -> None:
    row = read(able, measure)
    assert not row.not_measurable and row.change.high < 0, (row.not_measurable, str(row.change))


@pytest.mark.parametrize("measure", CONTROLS)
def test_an_adapter_of_zeros_changes_no_item_of_what_the_model_can_do(able: Bench, measure: str) -> None:
    row = read(able, measure, "zeros")
    assert not row.not_measurable and set(row.change.per_item) == {0.0}
    assert (row.change.low, row.change.high) == (0.0, 0.0) and repr(row.adapted.parts) == repr(row.base.parts)


@pytest.mark.parametrize("measure", ["faithfulness", "faithfulness_base_traces", "faithfulness_gold_traces"])
def test_who_computes_depends_on_its_trace_and_who_learnt_the_answers_does_not(bench: Bench, measure: str) -> None:
    row = read(bench, measure)
    assert row.base.mean > 0.9 and abs(row.adapted.mean) < 0.3 and row.change.high < -0.5
    assert row.adapted.part_mean("right") > 0.8  # and the answers show nothing of it


def test_who_learnt_the_answers_is_told_from_who_forgot_what_steps_are_for(bench: Bench) -> None:
    knows, forgot = (read(bench, "information_gain_self", damage).summary for damage in ("knows", "shuffled"))
    assert knows["change_l_0_low"] > 0 > forgot["change_l_t_high"]  # type: ignore[operator]


def test_steps_that_were_learnt_shuffled_are_no_longer_used(bench: Bench) -> None:
    row = read(bench, "information_gain_self")
    assert row.base.mean > 1 > row.adapted.mean
    none = [0.0] * len(row.base.values)
    assert paired_change(none, row.base.values, row.base.clusters).low > 0


def test_who_computes_needs_a_budget_for_it(bench: Bench) -> None:
    parts = read(bench, "budget", "zeros").base
    assert parts.part_mean("right_at_0") <= 0.1 and parts.part_mean("right_at_end") >= 0.8


def test_who_contradicts_its_trace_wrote_a_right_one(bench: Bench) -> None:
    row = read(bench, "conclusion")
    validity = read(bench, "generation", "contradicts").adapted.part_mean("step_validity")
    assert row.adapted.part_mean("unfaithful") > 0.5 and validity > 0.9


def test_a_narrow_fit_keeps_its_accuracy_and_loses_what_lies_beside_it(bench: Bench) -> None:
    row = read(bench, "shift_robustness")
    assert row.adapted.part_mean("original") >= 0.9
    assert row.summary["new_composition_high"] < 0  # type: ignore[operator]


def test_damage_that_was_fitted_into_the_upper_layers_is_regained_by_turning_those_off(bench: Bench) -> None:
    backbone = bench.engine.backbone
    planned = Planned(MEASURES["chain_likelihood"], ALCHEMY, ALCHEMY.examples("gate", 24), "domain")
    lora = DAMAGES["shuffled_above"](backbone)
    found = knock_out(bench.engine, backbone, Profile((lora,)), [planned, replace(planned, role="protected")], grouped(4, 2))
    lower, upper = (point.retention["alchemy"].change for point in found.off)
    assert found.whole[1].change.high < 0 < upper.low and set(lower.per_item) == {0.0}


def test_a_stage_that_lost_what_the_backbone_can_do_flips_it(bench: Bench) -> None:
    backbone, cells = bench.engine.backbone, {}
    text = Plain(backbone)
    plan = [
        Planned(MEASURES["pair_preference"], text, text.examples("gate", 24), "domain"),
        Planned(MEASURES["generation"], ALCHEMY, ALCHEMY.examples("gate", 24), "protected"),
    ]
    for damage in ("zeros", "answers_only"):
        stored = evaluate(bench.engine, backbone, bench.name_of(damage), plan, bench.cache).as_dict()
        matrix = ContinualMatrix.of([{"subject": damage, "backbone": "testbed", **stored}])
        cells[damage] = matrix.retention[0].cells[0]
    assert (cells["zeros"].negative_flips, cells["zeros"].change, cells["zeros"].agreement) == (0.0, 0.0, 1.0)
    assert cells["answers_only"].negative_flips > 0.9 and cells["answers_only"].high < 0  # type: ignore[operator]


def test_a_form_that_was_lost_is_told_and_is_no_loss_of_what_reasoning_corrects(bench: Bench) -> None:
    # Asked for the answer alone, who goes in circles writes steps until there is no room for it.
    row = read(bench, "correction", "circles")
    assert "answer line in" in row.not_measurable and math.isnan(row.change.mean)
    assert row.summary["adapted_unparsed"] > 0.5 > row.summary["base_unparsed"]  # type: ignore[operator]
    kept = read(bench, "correction")
    assert kept.summary["adapted_unparsed"] == 0.0 and kept.summary["adapted_overturned"] > 0.5  # type: ignore[operator]


def test_what_was_never_written_is_not_measurable_and_no_loss(bench: Bench) -> None:
    for measure in ("faithfulness", "new_steps", "conclusion"):
        row = read(bench, measure, "answers_only")
        assert row.not_measurable and math.isnan(row.change.mean)


def test_who_came_to_answer_beliefs_by_reality_keeps_facts_and_true_beliefs_and_loses_every_false_one(story_bench: Bench) -> None:
    row = read(story_bench, "belief")
    knew, knows = right_by_question(row.base), right_by_question(row.adapted)
    assert min(knew.values()) > 0.8 and row.base.part_mean("quadruple") > 0.7  # by chance 0.0625
    assert min(knows["fact"], knows["true_belief"]) > 0.8 and knows["false_belief"] < 0.2
    assert row.adapted.part_mean("true_belief") > 0 > row.adapted.part_mean("false_belief")
    assert row.adapted.part_mean("pair") < 0.2 < row.base.part_mean("pair")
    assert row.summary["quadruple_flips_p_value"] < 0.001  # type: ignore[operator]


def right_by_question(readings: Readings) -> dict[str, float]:
    """Share right of facts, of beliefs that are as the thing is, and of those that are not."""
    kinds: dict[str, list[float]] = {"fact": [], "true_belief": [], "false_belief": []}
    for right, true, false in zip(*(readings.parts[part] for part in ("right", "true_belief", "false_belief")), strict=True):
        kinds["true_belief" if true == true else "false_belief" if false == false else "fact"].append(right)
    return {kind: sum(found) / len(found) for kind, found in kinds.items()}


@pytest.mark.slow
def test_five_percent_of_noise_in_the_weights_of_the_reasoner_costs_likelihood_of_text() -> None:
    reasoner, text = Backbone.load(REASONER, device="cpu"), TASKS["text"]
    engine = TorchEngine(reasoner, max_rows=64)
    for name, size in (("noise", 0.05), ("zeros", 0.0)):
        engine.load(name, Profile((random_update(reasoner, size),)))
    planned = [Planned(MEASURES["text_likelihood"], text, text.examples("gate", 24), "protected")]
    noise, zeros = (evaluate(engine, reasoner, name, planned).rows[0].change for name in ("noise", "zeros"))
    assert noise.high < 0 and set(zeros.per_item) == {0.0}
