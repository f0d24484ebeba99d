"""Evidence: an undecided gate goes on, and no number of gates spends more than alpha."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gated_names import NAME
from test_gate import Clock

from registry.evidence import Evidence, Share, Spent, begun
from registry.gate import Draw, run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.names import ReleaseName
from registry.release import MANIFEST_TAG
from registry.tracking import Tracking
from registry.verdicts import (
    EVIDENCE_TAG,
    record_start,
    record_verdict,
    recorded_evidence,
    recorded_report,
    report_of_same_files,
    taken_shares,
)

SETTINGS = GateSettings(margin=0.15, max_rounds=1)
RELEASE = ReleaseName(NAME, 1)


def drawing(rng: np.random.Generator, lost: float, count: int = 15) -> Draw:
    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [f"{round_index}/{item}" for item in range(count)]
        kept = (rng.random(count) >= lost).astype(float)
        gained = PairedItems.of(np.zeros(count), np.ones(count), names)
        return {"icd10": gained, "boxes": PairedItems.of(np.ones(count), kept, names)}

    return draw


def promoted(rng: np.random.Generator, lost: float, earlier: Evidence | None, conditions: str = "same") -> GateReport:
    before = begun(earlier, conditions, SETTINGS)
    settings = before.start.applied_to(SETTINGS)
    return run_gate(settings, drawing(rng, lost), Clock(), domain="icd10", subject=str(RELEASE), before=before)


def ever_passes(rng: np.random.Generator, lost: float, conditions: Callable[[int], str], times: int = 12) -> bool:
    earlier: Evidence | None = None
    for number in range(times):
        report = promoted(rng, lost, earlier, conditions(number))
        if report.verdict != "inconclusive":
            return report.passed
        earlier = report.evidence
    return False


@pytest.mark.parametrize("conditions", [lambda number: "same", str], ids=["continued", "begun afresh each time"])
def test_a_loss_of_the_margin_passes_at_most_alpha_of_the_time_however_often_it_is_promoted(
    conditions: Callable[[int], str],
) -> None:
    rng = np.random.default_rng(8)
    passed = sum(ever_passes(rng, 0.15, conditions) for _ in range(120))
    assert passed / 120 <= SETTINGS.alpha


def test_a_release_that_keeps_its_reasoning_passes_when_its_gate_goes_on() -> None:
    rng = np.random.default_rng(9)
    assert sum(ever_passes(rng, 0.0, lambda number: "same") for _ in range(20)) == 20


def test_the_next_gate_numbers_its_rounds_on_and_counts_what_was_drawn() -> None:
    rng = np.random.default_rng(10)
    first = promoted(rng, 0.05, None)
    assert first.evidence is not None and (first.rounds, first.rounds_before) == (1, 0)
    second = promoted(rng, 0.05, first.evidence)
    assert (second.rounds, second.rounds_before, second.domain.num_items) == (2, 1, 30)
    assert second.evidence is not None and second.evidence.start == first.evidence.start


def test_a_gate_that_is_decided_already_draws_nothing() -> None:
    rng, report = np.random.default_rng(10), None
    while report is None or report.verdict == "inconclusive":
        report = promoted(rng, 0.0, report.evidence if report else None)

    def refuse(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        raise AssertionError("nothing is left to be drawn")

    again = run_gate(report.settings, refuse, Clock(), domain="icd10", subject=str(RELEASE), before=report.evidence)
    assert (again.verdict, again.tests, again.rounds_before) == ("pass", report.tests, report.rounds)


def test_other_conditions_begin_afresh_and_all_shares_together_are_alpha_at_most() -> None:
    evidence = begun(None, "0", SETTINGS)
    shares = [evidence.start.applied_to(SETTINGS).candidate_alpha]
    for number in range(1, 30):
        evidence = begun(evidence, str(number), SETTINGS)
        shares.append(evidence.start.applied_to(SETTINGS).candidate_alpha)
    assert evidence.start.restarts == 29 and not evidence.items
    assert shares == sorted(shares, reverse=True) and sum(shares) <= SETTINGS.alpha


def test_a_gate_goes_on_with_no_more_alpha_than_it_was_begun_with() -> None:
    one_of_three = begun(None, "same", SETTINGS.model_copy(update={"num_candidates": 3}))
    again = begun(one_of_three, "same", SETTINGS).start.applied_to(SETTINGS)
    assert again.num_candidates == 3
    other = begun(one_of_three, "other", SETTINGS).start.applied_to(SETTINGS)
    assert (other.num_candidates, other.restarts) == (3, 1)


def shares_of(nums: list[int], promotions: int = 0, spent: Spent | None = None) -> tuple[list[int], Spent]:
    """Gates of so many versions, each begun among `nums[i]` candidates: the share each gets, and what is spent after them."""
    spent = spent or Spent()
    numbers = []
    for index, num in enumerate(nums):
        settings = SETTINGS.model_copy(update={"num_candidates": num})
        start = begun(None, f"{promotions}/{index}", settings, spent=Spent(promotions, spent.shares)).start
        spent = Spent(promotions, spent.shares.union(start.shares))
        numbers.append(start.restarts)
    return numbers, spent


def test_candidates_declared_together_divide_one_share_and_each_later_version_gets_a_smaller_one() -> None:
    assert shares_of([3, 3, 3, 3, 3, 3, 3])[0] == [0, 0, 0, 1, 1, 1, 2]
    assert shares_of([1, 1, 1])[0] == [0, 1, 2]
    assert shares_of([2, 3, 3, 2])[0] == [0, 0, 1, 1]


@pytest.mark.parametrize("nums", [[1] * 60, [3] * 60, [2, 3, 1] * 20])
def test_all_versions_of_a_name_together_spend_at_most_alpha(nums: list[int]) -> None:
    numbers, _ = shares_of(nums)
    spent = [
        SETTINGS.model_copy(update={"num_candidates": num, "restarts": number}).candidate_alpha
        for num, number in zip(nums, numbers, strict=True)
    ]
    assert sum(spent) <= SETTINGS.alpha


def test_a_promotion_gives_the_name_its_alpha_again() -> None:
    _, spent = shares_of([1, 1])
    assert shares_of([1, 1], promotions=1, spent=spent)[0] == [0, 1]


def test_a_gate_begun_again_takes_a_share_of_its_own_and_keeps_the_ones_before() -> None:
    first = begun(None, "a", SETTINGS)
    other = begun(None, "a", SETTINGS, spent=Spent(0, frozenset(first.start.shares)))
    again = begun(first, "b", SETTINGS, spent=Spent(0, frozenset(first.start.shares + other.start.shares)))
    assert (other.start.restarts, again.start.restarts, len(again.start.shares)) == (1, 2, 2)


def test_evidence_of_another_name_goes_on_with_what_alpha_this_name_has_left() -> None:
    first = begun(None, "a", SETTINGS)
    own = Spent(0, frozenset({Share(1, 0, 0, 1), Share(2, 0, 1, 1)}))
    taken = begun(first, "a", SETTINGS, spent=own).start
    assert (taken.seed, taken.restarts) == (first.start.seed, 2)
    assert begun(first, "a", SETTINGS, spent=Spent(5, frozenset(first.start.shares))).start == first.start


def test_evidence_is_kept_with_the_version_and_not_in_the_report(tracking: Tracking) -> None:
    assert recorded_evidence(tracking, RELEASE) is None
    report = promoted(np.random.default_rng(11), 0.05, None)
    record_verdict(tracking, RELEASE, report)
    record_verdict(tracking, RELEASE, report)
    kept, shown = recorded_evidence(tracking, RELEASE), recorded_report(tracking, RELEASE)
    assert kept is not None and report.evidence is not None and kept.digest() == report.evidence.digest()
    assert shown is not None and shown.evidence is None and shown.digest() == report.digest()


def test_a_gate_that_was_cut_off_begins_with_the_same_seed(tracking: Tracking) -> None:
    start = begun(None, "same", SETTINGS).start
    record_start(tracking, RELEASE, start)
    kept = recorded_evidence(tracking, RELEASE)
    assert kept is not None and kept.start == start and kept.rounds == 0
    assert begun(kept, "same", SETTINGS).start.seed == start.seed


def test_evidence_that_cannot_be_read_is_drawn_again(tracking: Tracking) -> None:
    report = promoted(np.random.default_rng(12), 0.05, None)
    record_verdict(tracking, RELEASE, report)
    with tracking.client() as client:
        client.set_model_version_tag(NAME, "1", EVIDENCE_TAG, '{"run_id": "gone", "sha256": ""}')
    kept = recorded_evidence(tracking, RELEASE)
    assert kept is not None and report.evidence is not None and (kept.start, kept.rounds) == (report.evidence.start, 0)


def test_the_same_files_under_another_name_take_their_evidence_and_their_verdict_along(tracking: Tracking) -> None:
    drawn = promoted(np.random.default_rng(13), 0.05, None)
    record_verdict(tracking, RELEASE, drawn)
    with tracking.client() as client:
        client.set_model_version_tag(NAME, "1", MANIFEST_TAG, "same")
        client.create_registered_model("other")
        for digest in ("same", "different"):
            client.create_model_version("other", source="files", tags={MANIFEST_TAG: digest})
    kept = recorded_evidence(tracking, ReleaseName("other", 1))
    assert kept is not None and drawn.evidence is not None and kept.digest() == drawn.evidence.digest()
    verdict = report_of_same_files(tracking, ReleaseName("other", 1))
    assert verdict is not None and verdict.subject == str(RELEASE)
    assert recorded_evidence(tracking, ReleaseName("other", 2)) is None
    assert (len(taken_shares(tracking, NAME)), len(taken_shares(tracking, "other"))) == (1, 0)


def test_a_gate_that_is_killed_goes_on_from_its_last_whole_round(tmp_path: Path) -> None:
    rounds = [promoted(np.random.default_rng(seed), 0.05, None).evidence for seed in (1, 2)]
    kept, other = rounds
    assert kept is not None and other is not None
    kept.keep(tmp_path / "gate.json")
    cut_off = Evidence(kept.start)
    assert cut_off.or_kept(tmp_path / "gate.json").digest() == kept.digest()
    assert Evidence(other.start.model_copy(update={"seed": -1})).or_kept(tmp_path / "gate.json").rounds == 0


@pytest.mark.parametrize("text", ["", "[]", '{"start": {}}', "no json", "null", "3"])
def test_a_damaged_file_of_rounds_is_left_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    start = begun(None, "same", SETTINGS)
    assert start.or_kept(tmp_path / "gate.json") is start


@pytest.mark.parametrize(
    "damage", [{"items": []}, {"items": {"boxes": None}}, {"rounds": "two"}, {"rounds": None}, {"start": []}]
)
def test_rounds_of_another_form_are_left_aside(tmp_path: Path, damage: dict[str, object]) -> None:
    kept = promoted(np.random.default_rng(1), 0.05, None).evidence
    assert kept is not None
    (tmp_path / "gate.json").write_text(json.dumps({**json.loads(kept.to_json()), **damage}))
    start = Evidence(kept.start)
    assert start.or_kept(tmp_path / "gate.json") is start
