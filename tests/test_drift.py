"""Drift as the backbone sees it, and what the champion has left to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shelves import OPTIONS, parcels, write_jsonl, write_task
from small_releases import random_lora

from adapters.backbone import Backbone
from engine.inspect import inspector
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.measures.choice import ScoredOptions
from evaluation.task import Example, split_of
from tuning.new_data.beside import beside_champion
from tuning.new_data.drawn import one_a_group
from tuning.new_data.drift import Side, drift, drift_picture, mean_discrepancy, read_side
from tuning.new_data.learnable import HINT_NATS, Learnable, compared_shares, hint_of, learnable
from tuning.new_data.rows import checked_rows
from tuning.new_data.tasks import Known


def cloud(count: int, centre: float, seed: int) -> Side:
    rng = np.random.default_rng(seed)
    return Side(rng.normal(centre, 1, count), rng.normal(centre, 1, (count, 8)))


def test_rows_of_one_kind_drift_in_five_of_a_hundred_and_of_another_kind_always() -> None:
    p_values = [mean_discrepancy(cloud(20, 0, seed).states_NH, cloud(20, 0, 1000 + seed).states_NH)[1] for seed in range(60)]
    assert sum(value <= 0.05 for value in p_values) <= 8 and 0.3 < float(np.mean(p_values)) < 0.7
    assert mean_discrepancy(cloud(20, 0, 0).states_NH, cloud(20, 1.0, 1).states_NH)[1] <= 0.01


def test_rows_of_one_group_are_one_piece_of_evidence() -> None:
    """Groups of ten rows that are much alike, of one kind on both sides: as rows of their own they nearly always drift."""
    alarms = {"every row": 0, "one a group": 0}
    for seed in range(30):
        centres = np.random.default_rng(seed).normal(0, 1, (24, 8))
        states = centres.repeat(10, axis=0) + np.random.default_rng(100 + seed).normal(0, 0.1, (240, 8))
        rows = [Example(str(n), "q", "a", ("a", "b"), group=str(n // 10)) for n in range(240)]
        for which, kept in (("every row", rows), ("one a group", one_a_group(rows, 200, "drift/0"))):
            sides = [states[[int(one.id) for one in kept if (int(one.id) < 120) is old]] for old in (True, False)]
            alarms[which] += mean_discrepancy(*sides)[1] <= 0.05
    assert alarms["every row"] >= 20 and alarms["one a group"] <= 5


def test_states_that_changed_only_in_their_spread_have_drifted() -> None:
    wide = cloud(40, 0, 2)
    assert mean_discrepancy(cloud(40, 0, 1).states_NH, 3 * wide.states_NH)[1] <= 0.01


def test_the_backbone_tells_parcels_from_prose_and_not_from_parcels(backbone: Backbone, tmp_path: Path) -> None:
    engine, known = TorchEngine(backbone), Known.of(str(write_task(tmp_path, 80)))
    inside, rows = inspector(engine), known.task.rows
    assert inside is not None
    prose = [
        Example(str(n), f"What shall be done with number {n}, which came by sea?", "east", tuple(OPTIONS), group=str(n))
        for n in range(20)
    ]
    halves = [read_side(inside, backbone, rows[start::2]) for start in (0, 1)]
    mixed = [read_side(inside, backbone, [one for one in rows if ("red" in one.question) is red]) for red in (True, False)]
    other = read_side(inside, backbone, prose)
    same = drift(Side(halves[0].nats_N[::2], halves[0].states_NH[::2]), Side(halves[0].nats_N[1::2], halves[0].states_NH[1::2]))
    apart = drift(halves[0], other)
    assert min(same.likelihood_p, same.mmd_p) > 0.05 and apart.mmd_p <= 0.01
    assert min((told := drift(*mixed)).likelihood_p, told.mmd_p) <= 0.05
    assert drift_picture(halves[0], other, apart, tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="needs 8 rows on both sides"):
        drift(halves[0], Side(other.nats_N[:4], other.states_NH[:4]))


def test_a_loss_is_shown_by_many_rows_and_not_by_few() -> None:
    many, few, none = compared_shares(90, 100, 30, 100), compared_shares(9, 10, 7, 10), compared_shares(45, 50, 46, 50)
    assert many.is_lost and many.low < many.lost < many.high and many.lost == pytest.approx(0.6)
    assert not few.is_lost and not none.is_lost
    # Newcombe 1998, table II, method 10: 56/70 against 48/80.
    told = compared_shares(56, 70, 48, 80)
    assert (told.low, told.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def scored(*sums: float) -> ScoredOptions:
    return ScoredOptions(sums, sums, sums)


def test_an_answer_is_hinted_at_where_both_hold_the_same_other_option_much_likelier() -> None:
    row = Example("a", "which?", "north", ("north", "south", "east"))
    sure, unsure = scored(-HINT_NATS - 1, -1.0, 0.0), scored(-1.0, -1.0, 0.0)
    found = hint_of(row, sure, sure)
    assert found is not None and (found.answer, found.likelier) == ("north", "east")
    assert hint_of(row, sure, unsure) is None and hint_of(row, unsure, sure) is None
    assert hint_of(row, scored(0.0, -5.0, -9.0), sure) is None


def test_the_champion_is_read_on_new_rows_without_those_of_the_gate(backbone: Backbone, tmp_path: Path) -> None:
    engine, known = TorchEngine(backbone), Known.of(str(write_task(tmp_path, 80)))
    _, new = checked_rows(known.schema, write_jsonl(tmp_path / "n.jsonl", parcels(range(500, 540), ("green",))))
    engine.load("champion", Profile((random_lora(backbone, 1),)))
    found = learnable(engine, backbone, "champion", known.task, known.task.rows, new)
    assert isinstance(found, Learnable) and 0 < found.num_new < len(new) and 0 < found.num_old < len(known.task.rows) / 2
    assert f"{found.num_new} new rows" in str(found)
    assert found.hinted == len(found.hints) / sum(split_of(row.group) != "gate" for row in new) and 0 <= found.old_hinted <= 1


def test_the_control_of_the_hints_is_of_the_same_measure(backbone: Backbone, tmp_path: Path) -> None:
    """Old rows beside themselves: whatever share a weak backbone hints at among right labels, it is no sign of wrong ones."""
    engine, known = TorchEngine(backbone), Known.of(str(write_task(tmp_path, 160)))
    engine.load("champion", Profile((random_lora(backbone, 1),)))
    held = [row for row in known.task.rows if split_of(row.group) in ("search", "select")]
    found = learnable(engine, backbone, "champion", known.task, known.task.rows, held)
    assert found.hinted == found.old_hinted > 0 and found.lost == 0


def test_a_candidate_that_is_the_champion_gains_nothing_and_loses_nothing(backbone: Backbone, tmp_path: Path) -> None:
    engine, known = TorchEngine(backbone), Known.of(str(write_task(tmp_path, 160)))
    profile = Profile((random_lora(backbone, 1),))
    old = [*known.task.rows[:80]]
    same = beside_champion(engine, backbone, profile, profile, known.task, old, known.task.rows[80:])
    assert (same.old, same.new) == (0.0, 0.0) and same.old_verdict == "pass" and not same.passed
    assert same.as_dict()["passed"] is False and "beside the champion" in str(same)
