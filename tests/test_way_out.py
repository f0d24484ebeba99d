"""Who is told that a gate did not pass is told what to do about it, and the one thing follows from the verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from evaluation.task import split_of
from registry.gate import run_gate
from registry.gate_report import GateReport, SeedVerdict
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from service.way_out import GATE_SHARE, way_out

QUICK = GateSettings(margin=0.15, round_items=20, max_rounds=3, time_budget_s=300)


def report(gain: float, loss: float, rounds_of_domain: int = 9, count: int = 20, settings: GateSettings = QUICK) -> GateReport:
    """A gate whose adapter gains that share of the domain's items and loses that share of the family's."""

    def draw(index: int, settled: frozenset[str]) -> Mapping[str, PairedItems]:
        units = [f"{index}/{item}" for item in range(count)]
        gained, kept = np.arange(count) < gain * count, np.arange(count) >= loss * count
        found = {"boxes": PairedItems.of(np.ones(count), kept.astype(float), units)} if "boxes" not in settled else {}
        if index < rounds_of_domain:
            found["icd10"] = PairedItems.of(np.zeros(count), gained.astype(float), units)
        return found

    return run_gate(settings, draw, domain="icd10", subject="icd10@2")


def test_a_pass_needs_no_way_out() -> None:
    passed = report(0.8, 0.0)
    assert passed.passed and way_out(passed) is None


def test_a_loss_is_answered_by_what_loses_less_and_not_by_what_gains_more() -> None:
    failed = report(0.0, 0.9)  # the domain did not gain either, but is undecided
    told = way_out(failed)
    assert failed.verdict == "fail" and told is not None
    assert "stay failed, under any name" in told and "lower learning rate" in told and "Gain more" not in told


def test_a_recipe_that_fails_under_another_seed_has_a_way_out_too() -> None:
    failed = report(0.8, 0.0).with_seeds([SeedVerdict(number=1, verdict="fail", sentence="seed +1 failed.")])
    assert "under every training seed" in (way_out(failed) or "")


def test_no_gain_is_answered_by_what_gains_more_and_not_by_what_loses_less() -> None:
    told = way_out(report(0.0, 0.0))
    assert told is not None and "More items would not decide it. Gain more" in told and "Lose less" not in told


def test_an_undecided_gate_goes_on_by_the_same_command() -> None:
    told = way_out(report(0.2, 0.0, settings=QUICK.model_copy(update={"max_rounds": 1})))
    assert told is not None and "`graftline promote icd10@2` goes on from these items" in told


def test_where_the_rows_are_used_up_rows_are_asked_for() -> None:
    undecided = report(0.2, 0.0, rounds_of_domain=1)
    told, rows = way_out(undecided), re.compile("no fresh item left for icd10. Add rows, some ([0-9]+) of them")
    assert undecided.items_needed and told is not None and (found := rows.search(told))
    assert undecided.items_needed <= 0.15 * int(found[1]) < undecided.items_needed + 2


def test_the_share_of_rows_that_come_to_the_gate_is_that_of_the_splits() -> None:
    share = sum(split_of(str(number)) == "gate" for number in range(20_000)) / 20_000
    assert abs(share - GATE_SHARE) < 0.01
