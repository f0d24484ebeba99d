"""The gate's verdicts on simulated families, with a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from registry.gate import Draw, judge, run_gate, settled_names
from registry.gate_report import COLUMNS, POOLED, POOLED_SHARES, GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems, log_wealth, lower_bound

QUICK = GateSettings(margin=0.15, pooled_margin=0.05, round_items=20, max_rounds=10, time_budget_s=300)
FAMILIES = ("boxes", "deduction", "arithmetic", "kinship")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drawing(
    losses: Mapping[str, float], gain: float = 0.4, count: int = 20, clock: Clock | None = None, seconds: float = 0.0
) -> Draw:
    """Rounds in which each family loses that share of its items, which the backbone all had right."""

    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        if clock is not None:
            clock.now += seconds
        rng = np.random.default_rng([round_index, 11])
        gained = (rng.random(count) < gain).astype(float)
        drawn = {"icd10": PairedItems.of(np.zeros(count), gained, [f"{round_index}/{item}" for item in range(count)])}
        for name, loss in losses.items():
            kept = (rng.random(count) >= loss).astype(float)
            wordings = [f"wording {item % 4}" for item in range(count)]
            drawn[name] = PairedItems.of(np.ones(count), kept, wordings, fixed_clusters=True)
        return drawn

    return draw


def gate(settings: GateSettings = QUICK, losses: Mapping[str, float] | None = None, **options: float) -> GateReport:
    each = dict.fromkeys(FAMILIES, 0.0) | dict(losses or {})
    return run_gate(settings, drawing(each, **options), Clock(), domain="icd10", subject="medicine@1")  # type: ignore[arg-type]


def test_a_release_that_gains_and_loses_nothing_passes() -> None:
    report = gate()
    assert report.passed and report.stopped == "decided"
    assert [test.change for test in report.families] == [0.0] * 4
    assert report.domain.lower > 0 and report.pooled is not None and report.pooled.lower > -0.05


def test_base_against_base_changes_nothing_and_gains_nothing() -> None:
    report = gate(gain=0.0)
    assert {test.change for test in report.tests} == {0.0}
    assert report.verdict == "inconclusive" and report.domain.items_needed is None


def test_one_round_of_few_items_cannot_pass() -> None:
    report = gate(QUICK.model_copy(update={"max_rounds": 1}), count=5)
    assert report.verdict == "inconclusive" and report.stopped == "out of rounds"
    assert report.items_needed is not None and report.items_needed > 0
    assert "more items" in report.sentence


def test_a_family_that_died_fails_the_gate_and_is_named() -> None:
    report = gate(losses={"boxes": 0.9})
    assert report.verdict == "fail"
    assert "boxes" in report.sentence and "wording" in report.sentence


def test_losses_too_small_for_each_family_are_seen_by_the_pool() -> None:
    losses = dict.fromkeys(FAMILIES, 0.11)
    report = gate(QUICK.model_copy(update={"max_rounds": 60}), losses)
    assert report.verdict == "fail"
    assert [test.name for test in report.tests if test.verdict == "fail"] == [POOLED]


def test_nats_have_a_margin_of_their_own_and_no_place_among_pooled_shares() -> None:
    report = gate(QUICK.model_copy(update={"spans": {"boxes": 0.25}, "max_rounds": 1}))
    thresholds = {test.name: test.threshold for test in report.tests}
    assert (thresholds["boxes"], thresholds["kinship"]) == (-QUICK.nats_margin, -QUICK.margin)
    assert report.pooled is not None and (report.pooled.name, report.pooled.num_items) == (POOLED_SHARES, 60)
    only_nats = QUICK.model_copy(update={"spans": dict.fromkeys(FAMILIES, 0.25), "max_rounds": 1})
    assert gate(only_nats).pooled is None


def test_a_lost_domain_fails() -> None:
    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [f"{round_index}/{item}" for item in range(40)]
        kept = PairedItems.of(np.ones(40), np.ones(40), names)
        return {"icd10": PairedItems.of(np.ones(40), np.zeros(40), names), "boxes": kept}

    assert run_gate(QUICK, draw, Clock(), domain="icd10", subject="medicine@1").verdict == "fail"


def units(value: float, count: int) -> PairedItems:
    return PairedItems.of(np.zeros(count), np.full(count, value), np.arange(count))


def test_a_gain_is_shown_against_the_least_gain_and_not_against_none() -> None:
    gained = {"icd10": units(0.1, 400), "boxes": units(0.0, 400)}
    verdicts = [
        judge(QUICK.model_copy(update={"min_domain_gain": least}), gained, "icd10")[0].verdict for least in (0.0, 0.09, 0.2)
    ]
    assert verdicts == ["pass", "inconclusive", "fail"]


def test_a_pass_is_at_the_share_of_alpha_that_the_gate_may_spend_and_so_are_the_bounds_that_are_told() -> None:
    settings = QUICK.model_copy(update={"num_candidates": 3, "restarts": 2})
    needed = next(n for n in range(1, 400) if log_wealth(np.zeros(n), -settings.margin) >= -math.log(settings.candidate_alpha))
    assert log_wealth(np.zeros(needed - 1), -settings.margin) >= -math.log(settings.alpha)
    for count, verdict in ((needed - 1, "inconclusive"), (needed, "pass")):
        found = judge(settings, {"icd10": units(1.0, 400), "boxes": units(0.0, count)}, "icd10")[1]
        assert found.verdict == verdict
        assert found.lower == pytest.approx(lower_bound(np.zeros(count), settings.candidate_alpha)) == -found.upper


def test_a_family_is_judged_by_the_margin_of_its_own() -> None:
    settings = QUICK.model_copy(update={"margins": {"boxes": 0.3}})
    drawn = {name: units(0.0, 4) for name in ("icd10", "boxes", "kinship")}
    assert [test.threshold for test in judge(settings, drawn, "icd10")] == [0.0, -0.3, -0.15, -0.05]


def test_what_a_policy_has_written_is_a_test_of_its_own_and_no_protected_family() -> None:
    drawn = {"icd10": units(1.0, 400), "icd10, written": units(-1.0, 60), "boxes": units(0.0, 400)}
    found = judge(QUICK, drawn, "icd10", "icd10, written")
    assert [(test.role, test.num_items, test.verdict) for test in found] == [
        ("domain", 400, "pass"),
        ("written", 60, "fail"),
        ("protected", 400, "pass"),
        ("pooled", 400, "pass"),
    ]
    assert found[1].threshold == -QUICK.margin


def test_only_what_has_passed_is_settled() -> None:
    drawn = {"icd10": units(1.0, 400), "boxes": units(0.0, 4), "kinship": units(0.0, 400)}
    found = judge(QUICK.model_copy(update={"pooled_margin": None}), drawn, "icd10")
    assert settled_names(found) == {"icd10", "kinship"}


def test_harm_to_one_of_several_families_is_claimed_at_alpha_divided_by_the_number_of_tests() -> None:
    alpha = QUICK.candidate_alpha
    alone, shared = (
        next(n for n in range(1, 60) if log_wealth(np.ones(n), QUICK.margin) >= -math.log(level)) for level in (alpha, alpha / 6)
    )
    assert alone < shared  # six tests: the domain, four families and their pool
    for count, verdict in ((shared - 1, "inconclusive"), (shared, "fail")):
        drawn = {"icd10": units(1.0, 400), **{name: units(0.0, 400) for name in FAMILIES}, "boxes": units(-1.0, count)}
        found = next(test for test in judge(QUICK, drawn, "icd10") if test.name == "boxes")
        assert found.verdict == verdict and found.upper < found.threshold


def test_the_time_budget_stops_before_a_round_that_would_not_fit() -> None:
    clock = Clock()
    draw = drawing(dict.fromkeys(FAMILIES, 0.05), clock=clock, seconds=120.0)
    report = run_gate(GateSettings(time_budget_s=300), draw, clock, domain="icd10", subject="medicine@1")
    assert (report.rounds, report.elapsed_s, report.stopped) == (2, 240.0, "out of time")


def test_more_candidates_ask_for_more_evidence() -> None:
    alone, one_of_three = gate(), gate(QUICK.model_copy(update={"num_candidates": 3}))
    assert one_of_three.domain.num_items >= alone.domain.num_items
    assert QUICK.model_copy(update={"num_candidates": 3}).candidate_alpha == pytest.approx(0.9 * 0.05 / 3)


def test_a_gate_without_a_measurable_family_never_passes() -> None:
    report = run_gate(
        QUICK, drawing({}), Clock(), domain="icd10", subject="medicine@1", not_measurable={"boxes": "the backbone has 0 % right"}
    )
    assert report.verdict == "inconclusive" and "no protected family is measurable" in report.sentence
    assert ("boxes", "not measurable") == report.rows()[-1][:2]


def test_a_pass_says_of_how_many_families_nothing_is_known() -> None:
    each = drawing(dict.fromkeys(FAMILIES, 0.0))
    report = run_gate(QUICK, each, Clock(), domain="icd10", subject="medicine@1", not_measurable={"calendar": "chance"})
    assert report.passed and "all 4 protected families (1 more could show no loss on this backbone)" in report.sentence
    assert report.sentence.count(". ") == 0


def test_items_that_run_out_end_the_gate() -> None:
    first = drawing(dict.fromkeys(FAMILIES, 0.0), count=5)
    report = run_gate(
        QUICK, lambda index, settled: first(0, settled) if index == 0 else {}, Clock(), domain="icd10", subject="medicine@1"
    )
    assert report.stopped == "out of items" and report.verdict == "inconclusive"


def test_a_first_round_without_the_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="icd10"):
        run_gate(QUICK, lambda index, settled: {}, Clock(), domain="icd10", subject="medicine@1")


def test_the_gate_passes_a_loss_at_the_margin_at_most_alpha_of_the_time() -> None:
    settings = GateSettings(margin=0.15, max_rounds=8)
    rng = np.random.default_rng(5)

    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [f"{round_index}/{item}" for item in range(15)]
        kept = (rng.random(15) >= 0.15).astype(float)
        return {"icd10": PairedItems.of(np.zeros(15), np.ones(15), names), "boxes": PairedItems.of(np.ones(15), kept, names)}

    passed = sum(run_gate(settings, draw, Clock(), domain="icd10", subject="m@1").passed for _ in range(80))
    assert passed / 80 <= 0.05


def test_backbone_adapted_and_change_are_means_over_the_same_units() -> None:
    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        # One cluster of three items that were all lost, one of a single item that was kept.
        uneven = PairedItems.of([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], ["a", "a", "a", "b"])
        return {"icd10": PairedItems.of([0.0], [1.0], [f"{round_index}"]), "boxes": uneven, "kinship": uneven}

    settings = QUICK.model_copy(update={"max_rounds": 1})
    report = run_gate(settings, draw, Clock(), domain="icd10", subject="medicine@1")
    boxes = report.families[0]
    assert (boxes.base_mean, boxes.adapted_mean, boxes.change, boxes.num_units) == (0.5, 0.0, -0.5, 2)
    assert all(test.adapted_mean - test.base_mean == pytest.approx(test.change) for test in report.tests)
    assert report.pooled is not None and (report.pooled.num_units, report.pooled.worst_cluster) == (4, "boxes: a")
    assert "4 in 2 units" in report.rows()[1]


def test_the_standard_error_is_that_of_the_units_which_the_bounds_are_made_from() -> None:
    single = np.random.default_rng(7).choice([-1.0, 0.0, 1.0], 100)

    def stderr(items: PairedItems) -> float:
        found = judge(QUICK, {"icd10": items}, "icd10")[0].stderr
        assert found is not None
        return found

    once = stderr(PairedItems.of(np.zeros(100), single, np.arange(100)))
    assert once == pytest.approx(single.std(ddof=1) / 10)
    doubled = np.zeros(200), np.repeat(single, 2), np.repeat(np.arange(100), 2)
    assert stderr(PairedItems.of(*doubled)) == pytest.approx(once)
    assert stderr(PairedItems.of(np.zeros(100), single, np.arange(100) % 2, fixed_clusters=True)) == pytest.approx(once)
    assert judge(QUICK, {"icd10": PairedItems.of([0.0], [1.0], ["a"])}, "icd10")[0].stderr is None


def test_a_report_survives_json_with_its_digest_and_any_edit_changes_it() -> None:
    report = gate()
    assert GateReport.model_validate_json(report.canonical()).digest() == report.digest()
    assert report.model_copy(update={"subject": "medicine@2"}).digest() != report.digest()
    assert {len(row) for row in report.rows()} == {len(COLUMNS)}


def test_settings_refuse_a_margin_that_is_no_loss_and_a_fourth_candidate() -> None:
    with pytest.raises(ValidationError, match="boxes"):
        GateSettings(margins={"boxes": 0.0})
    with pytest.raises(ValidationError):
        GateSettings(num_candidates=4)


def test_a_test_that_has_passed_is_drawn_no_more_and_families_are_while_their_pool_is_open() -> None:
    asked: list[frozenset[str]] = []
    each = drawing({"boxes": 0.0, "deduction": 0.0})

    def draw(round_index: int, settled: frozenset[str]) -> Mapping[str, PairedItems]:
        asked.append(settled)
        return {name: items for name, items in each(round_index, frozenset()).items() if name not in settled}

    report = run_gate(
        GateSettings(margin=0.1, pooled_margin=0.02, max_rounds=40), draw, Clock(), domain="icd10", subject="medicine@1"
    )
    assert report.passed and report.rounds > 2
    assert asked[0] == frozenset()
    assert "icd10" in asked[-1] and not asked[-1] & {"boxes", "deduction"}
    domain = next(test for test in report.tests if test.name == "icd10")
    assert domain.num_items < report.families[0].num_items
