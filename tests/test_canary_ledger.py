"""Canaries in the ledger: one winner, no promotion that builds on one, and an end wherever the champion moves."""

from __future__ import annotations

import threading

import pytest
from gated_names import NAME, report

from registry.canary import CanaryLedger
from registry.canary_chain import Bounds, checked_bounds
from registry.errors import CanaryMoved, CanaryRefused, NoCanary, NoChampion, PromotionRefused, UnknownRelease
from registry.ledger import Ledger
from registry.ledger_chain import CANARY_TAG, DIGEST_TAG, ENTRY_TAG, LedgerEntry
from registry.ledger_reader import LedgerReader
from registry.status import name_status
from registry.tracking import Tracking


@pytest.fixture
def canaries(tracking: Tracking) -> CanaryLedger:
    """Beside medicine@1."""
    Ledger(tracking, NAME).promote(1, report(1))
    return CanaryLedger(tracking, NAME)


def test_a_start_is_under_way_for_every_reader(canaries: CanaryLedger) -> None:
    reader = LedgerReader(canaries.tracking, NAME)
    assert reader.refresh() == 1 and reader.canary is None
    bounds = Bounds(max_error_rate_rise=0.1, min_requests=5)
    started = canaries.start(2, 0.1, report(2), bounds=bounds, actor="ada")
    assert reader.refresh() == 1 and reader.canary == started == canaries.under_way()
    with canaries.tracking.client() as client:  # as an entry from before it named its files
        assert "manifest" not in client.get_model_version(f"{NAME}.releases", "2").tags[CANARY_TAG]
    assert (str(started.release), str(started.champion), started.share, started.bounds) == (
        "medicine@2",
        "medicine@1",
        0.1,
        bounds,
    )


def test_the_status_of_a_name_tells_of_its_canary(canaries: CanaryLedger) -> None:
    assert name_status(canaries.tracking, NAME).canary is None
    canaries.start(2, 0.1, None, override=True, reason="a demo")
    shown = name_status(canaries.tracking, NAME)
    assert shown.canary is not None and "medicine@2 is canary with a share of 0.1" in shown.canary
    assert "by an override" in shown.canary and shown.warnings == ()


def test_a_share_that_grows_is_the_same_canary(canaries: CanaryLedger) -> None:
    reader = LedgerReader(canaries.tracking, NAME)
    first = canaries.start(2, 0.1, report(2))
    reader.refresh()
    grown = canaries.set_share(0.5)
    reader.refresh()
    assert reader.canary == grown and (grown.id, grown.share) == (first.id, 0.5)


def test_a_version_that_passed_no_gate_needs_an_override_with_a_reason(canaries: CanaryLedger) -> None:
    for verdict in (None, report(2, lost=0.5)):
        with pytest.raises(PromotionRefused):
            canaries.start(2, 0.1, verdict)
        with pytest.raises(PromotionRefused, match="reason"):
            canaries.start(2, 0.1, verdict, override=True)
    assert canaries.under_way() is None
    assert canaries.start(2, 0.1, None, override=True, reason="a demo").overridden
    with pytest.raises(PromotionRefused):
        canaries.finish(None)
    assert canaries.under_way() is not None


def test_what_cannot_be_a_canary_is_refused_and_writes_nothing(tracking: Tracking) -> None:
    canaries = CanaryLedger(tracking, NAME)
    with pytest.raises(NoChampion):
        canaries.start(2, 0.1, report(2))
    champions = Ledger(tracking, NAME)
    champions.promote(1, report(1))
    with pytest.raises(CanaryRefused, match="is the champion"):
        canaries.start(1, 0.1, report(1))
    with pytest.raises(UnknownRelease):
        canaries.start(9, 0.1, report(9))
    for share in (0.0, -0.1, 0.96, 1.5, float("nan")):
        with pytest.raises(CanaryRefused, match="share"):
            canaries.start(2, share, report(2))
    assert canaries.history().records == ()
    assert canaries.start(2, 1.0, report(2), shadow=True).shadow
    with pytest.raises(CanaryRefused, match="one canary at a time"):
        canaries.start(3, 0.1, report(3))
    assert len(canaries.history().records) == 1


def test_bounds_are_checked_in_a_sentence() -> None:
    with pytest.raises(CanaryRefused, match="max_latency_ratio does not fit: .*greater than or equal to 1, but got 0.5"):
        checked_bounds(Bounds(), max_latency_ratio=0.5)
    assert checked_bounds(Bounds(alpha=0.02), min_requests=None) == Bounds(alpha=0.02)


def test_a_reader_that_knows_only_promotions_reads_them_and_promotes_past_canaries(canaries: CanaryLedger) -> None:
    """What stands in the store, read as it was read before canaries were known: an unknown entry is void and no one's parent."""
    canaries.start(2, 0.1, report(2))
    canaries.end("stop", "enough")
    champions = Ledger(canaries.tracking, NAME)
    champions.promote(3, report(3))
    with canaries.tracking.client() as client:
        stored = sorted(client.search_model_versions(f"name='{NAME}.releases'"), key=lambda version: int(version.version))
    head, digest, seen = 0, "", []
    for version in stored:
        if ENTRY_TAG not in version.tags:
            continue
        entry = LedgerEntry.model_validate_json(version.tags[ENTRY_TAG])
        assert entry.parent == head and version.tags[DIGEST_TAG] == entry.chained(digest)
        head, digest = int(version.version), version.tags[DIGEST_TAG]
        seen.append(entry.adapter_version)
    assert seen == [1, 3] and [int(version.version) for version in stored] == [1, 2, 3, 4]
    assert [recorded.void for recorded in champions.records()] == [None, None]


@pytest.mark.parametrize("kind", ["promote", "rollback"])
def test_a_champion_that_moves_ends_the_canary(canaries: CanaryLedger, kind: str) -> None:
    champions = Ledger(canaries.tracking, NAME)
    champions.promote(2, report(2))
    canaries.start(3, 0.1, report(3))
    reader = LedgerReader(canaries.tracking, NAME)
    reader.refresh()
    assert reader.canary is not None
    champions.promote(4, report(4)) if kind == "promote" else champions.rollback("slow")
    reader.refresh()
    assert reader.canary is None and canaries.under_way() is None
    with pytest.raises(NoCanary, match="ended when the champion moved"):
        canaries.end("stop", "too late")
    assert canaries.start(3, 0.2, report(3)).share == 0.2


def test_finishing_is_a_promotion_that_names_the_release_champion(canaries: CanaryLedger) -> None:
    canaries.start(2, 0.1, report(2))
    made = canaries.finish(report(2), actor="ada")
    assert made.entry is not None and (made.entry.kind, made.entry.adapter_version) == ("promote", 2)
    assert canaries.under_way() is None and canaries.champions.champion_version() == 2
    assert [entry.kind for _, entry in canaries.history().valid] == ["start", "finish"]


def test_of_eight_rollbacks_at_once_one_is_written(canaries: CanaryLedger) -> None:
    seen = canaries.start(2, 0.1, report(2))
    barrier, outcomes = threading.Barrier(8), list[str]()

    def process(index: int) -> None:
        barrier.wait()
        try:
            outcomes.append(f"won {canaries.end('rollback', f'errors {index}', expected=seen)[0]}")
        except (CanaryMoved, NoCanary) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=process, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8 and sum(outcome.startswith("won") for outcome in outcomes) == 1
    assert [entry.kind for _, entry in canaries.history().valid] == ["start", "rollback"]
    assert canaries.champions.champion_version() == 1 and canaries.champions.drift() is None


def test_a_rollback_of_an_earlier_start_does_not_end_a_later_one(canaries: CanaryLedger) -> None:
    first = canaries.start(2, 0.1, report(2))
    canaries.end("stop", "enough")
    second = canaries.start(2, 0.1, report(2))
    with pytest.raises(CanaryMoved):
        canaries.end("rollback", "stale numbers", expected=first)
    assert canaries.under_way() == second


def test_an_end_needs_a_reason_and_something_under_way(canaries: CanaryLedger) -> None:
    with pytest.raises(NoCanary, match="graftline canary start medicine@VERSION"):
        canaries.end("stop", "why not")
    canaries.start(2, 0.1, report(2))
    with pytest.raises(PromotionRefused, match="reason"):
        canaries.end("stop", " ")
    canaries.end("rollback", "slow: 2.0 times")
    with pytest.raises(NoCanary, match="ended by rollback: slow: 2.0 times"):
        canaries.finish(report(2))


def test_an_edited_entry_is_void_and_gives_no_traffic(canaries: CanaryLedger) -> None:
    canaries.start(2, 0.1, report(2))
    with canaries.tracking.client() as client:
        stored = client.get_model_version(f"{NAME}.releases", "2").tags[CANARY_TAG]
        client.set_model_version_tag(f"{NAME}.releases", "2", CANARY_TAG, stored.replace('"share":0.1', '"share":0.9'))
    [record] = canaries.history().records
    assert record.void is not None and "edited" in record.void and canaries.under_way() is None
    assert canaries.champions.champion_version() == 1
