"""The ledger: one winner, a history that shows edits, and a pointer that can be repaired."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from gated_names import NAME, report

from registry.errors import (
    ChampionMoved,
    NoChampion,
    NothingToRollBackTo,
    PromotionRefused,
    RegistryError,
    UnknownRelease,
    UnreadableReport,
)
from registry.ledger import Ledger
from registry.ledger_chain import ENTRY_TAG
from registry.ledger_reader import LedgerReader
from registry.names import ReleaseName, registered_names, resolve
from registry.status import name_status
from registry.status import status as status_of
from registry.tracking import Tracking
from registry.verdicts import REPORT_TAG, record_verdict, recorded_report
from service.commands.status import status as show_status


@pytest.fixture
def ledger(tracking: Tracking) -> Ledger:
    return Ledger(tracking, NAME)


def test_a_passed_release_becomes_champion_and_the_alias_follows(ledger: Ledger) -> None:
    made = ledger.promote(1, report(1), reason="first", actor="ada")
    assert made.entry is not None and (made.entry.kind, made.entry.gate_verdict, made.entry.actor) == ("promote", "pass", "ada")
    assert ledger.champion_version() == ledger.alias_version() == 1
    assert str(resolve(ledger.tracking, NAME)) == str(resolve(ledger.tracking, f"{NAME}@champion")) == "medicine@1"
    assert registered_names(ledger.tracking) == [NAME]
    kept = ledger.report_of(made.number)
    assert kept is not None and kept.digest() == made.entry.gate_digest


def test_a_reason_is_shown_as_it_was_given(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.promote(1, report(1), reason="[urgent] see runs[/old]", actor="ada")
    show_status(tmp_path, None, as_json=False)
    assert "[urgent] see runs[/old]" in " ".join(capsys.readouterr().out.split())


def test_a_name_without_a_promotion_has_no_champion(tracking: Tracking) -> None:
    for ask in (lambda: resolve(tracking, NAME), LedgerReader(tracking, NAME).refresh):
        with pytest.raises(NoChampion, match="graftline promote"):
            ask()


@pytest.mark.parametrize("reference", ["nosuch", "nosuch@champion", "nosuch@1", "nosuch@candidate"])
def test_a_name_that_does_not_exist_is_not_to_be_promoted_but_made(tracking: Tracking, reference: str) -> None:
    with pytest.raises(
        UnknownRelease, match=rf"'{reference}' is not there \(models: medicine\).*`graftline publish STUDY`"
    ) as told:
        resolve(tracking, reference)
    assert "promote" not in str(told.value)


def test_of_sixteen_promoters_who_saw_the_same_head_exactly_one_wins(ledger: Ledger) -> None:
    ledger.promote(1, report(1))
    head, passed = ledger.head(), {version: report(version) for version in (2, 3, 4)}
    barrier, outcomes = threading.Barrier(16), list[str]()

    def rival(index: int) -> None:
        version = 2 + index % 3
        barrier.wait()
        try:
            made = ledger.promote(version, passed[version], actor=f"rival {index}", expected_head=head)
            outcomes.append(f"won {made.number}")
        except ChampionMoved as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=rival, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 16 and sum(outcome.startswith("won") for outcome in outcomes) == 1
    winner = ledger.head()
    assert [f"won {winner.number}"] == [outcome for outcome in outcomes if outcome.startswith("won")]
    assert all(f"{winner.actor} made {NAME}@{winner.adapter_version} champion" in o for o in outcomes if not o.startswith("won"))
    assert len(ledger.entries()) == 2 and ledger.drift() is None


def test_a_promotion_from_a_stale_head_is_told_who_won_and_writes_nothing(ledger: Ledger) -> None:
    stale = ledger.head()
    ledger.promote(1, report(1), actor="ada")
    with pytest.raises(ChampionMoved, match="ada made medicine@1 champion"):
        ledger.promote(2, report(2), expected_head=stale)
    assert len(ledger.records()) == 1


@pytest.mark.parametrize("lost", [0.5, 0.02])
def test_a_release_that_did_not_pass_is_not_promoted(ledger: Ledger, lost: float) -> None:
    with pytest.raises(PromotionRefused, match="boxes"):
        ledger.promote(1, report(1, lost))
    with pytest.raises(PromotionRefused, match="not gated"):
        ledger.promote(1, None)
    assert ledger.records() == []
    assert name_status(ledger.tracking, NAME).candidates[-1].verdict == report(1, lost).verdict


def test_a_report_about_another_version_promotes_nothing(ledger: Ledger) -> None:
    with pytest.raises(PromotionRefused, match="medicine@2, not medicine@1"):
        ledger.promote(1, report(2))


def test_an_override_needs_a_reason_and_stays_visible(ledger: Ledger) -> None:
    with pytest.raises(PromotionRefused, match="needs a reason"):
        ledger.promote(1, report(1, lost=0.5), override=True, reason="  ")
    ledger.promote(1, report(1, lost=0.5), override=True, reason="a demo", actor="ada")
    assert any("by an override (ada: a demo)" in warning for warning in name_status(ledger.tracking, NAME).warnings)
    ledger.promote(2, report(2))
    ledger.rollback("back")
    shown = name_status(ledger.tracking, NAME)
    assert [entry.kind for entry in shown.history] == ["override", "promote", "rollback"]
    assert shown.history[-1].verdict == "fail" and any("override" in warning for warning in shown.warnings)
    assert [version.overridden for version in shown.candidates] == [False, False, False, True]


def test_an_override_that_was_not_needed_is_a_plain_promotion(ledger: Ledger) -> None:
    made = ledger.promote(1, report(1), override=True)
    assert made.entry is not None and not made.entry.is_override


def test_a_version_that_is_not_there_is_not_promoted(ledger: Ledger) -> None:
    with pytest.raises(UnknownRelease, match="medicine@9"):
        ledger.promote(9, report(9))


def test_rollbacks_walk_back_along_the_line_of_champions(ledger: Ledger) -> None:
    for version in (1, 2, 3):
        ledger.promote(version, report(version))
    assert [ledger.rollback("worse") and ledger.champion_version() for _ in range(2)] == [2, 1]
    with pytest.raises(NothingToRollBackTo, match="2, 3"):
        ledger.rollback("worse still")
    ledger.rollback("it was fine", to=3)
    assert ledger.champion_version() == ledger.alias_version() == 3
    assert len(ledger.entries()) == 6


def test_a_rollback_goes_only_to_an_earlier_champion_and_tells_why(ledger: Ledger) -> None:
    with pytest.raises(NoChampion):
        ledger.rollback("why not")
    ledger.promote(1, report(1))
    for target in (4, 1, None):
        with pytest.raises(NothingToRollBackTo):
            ledger.rollback("why not", to=target)
    with pytest.raises(PromotionRefused, match="needs a reason"):
        ledger.rollback("")


def test_an_alias_moved_by_hand_is_drift_and_is_not_served(ledger: Ledger) -> None:
    ledger.promote(1, report(1))
    assert ledger.drift() is None
    with ledger.tracking.client() as client:
        client.set_registered_model_alias(NAME, "champion", "3")
    drift = ledger.drift()
    assert drift is not None and (drift.champion, drift.alias) == (1, 3)
    assert "graftline promote medicine@3" in drift.repair
    assert resolve(ledger.tracking, f"{NAME}@champion").version == 1
    ledger.point_alias()
    assert ledger.drift() is None


def test_an_alias_without_any_promotion_is_drift_too(ledger: Ledger) -> None:
    with ledger.tracking.client() as client:
        client.set_registered_model_alias(NAME, "champion", "3")
    drift = ledger.drift()
    assert drift is not None and drift.champion is None and "nothing is served" in drift.repair


def test_a_reader_follows_promotions_rollbacks_and_void_entries(ledger: Ledger) -> None:
    reader = LedgerReader(ledger.tracking, NAME)
    seen = []
    for act in (lambda: ledger.promote(1, report(1)), lambda: ledger.promote(2, report(2)), lambda: ledger.rollback("worse")):
        act()
        seen.append(reader.refresh())
    with ledger.tracking.client() as client:
        client.create_model_version(f"{NAME}.releases", source="models:/medicine/4", tags={ENTRY_TAG: "{}"})
        client.create_model_version(f"{NAME}.releases", source="models:/medicine/4")
    assert [*seen, reader.refresh()] == [1, 2, 1, 1]
    ledger.promote(3, report(3))
    ledger.promote(4, report(4))
    assert reader.refresh() == 4 and reader.head == ledger.head() == Ledger(ledger.tracking, NAME).head()


def test_a_reader_notices_a_ledger_that_was_deleted(ledger: Ledger) -> None:
    reader = LedgerReader(ledger.tracking, NAME)
    ledger.promote(1, report(1))
    assert reader.refresh() == 1
    with ledger.tracking.client() as client:
        client.delete_registered_model(f"{NAME}.releases")
    with pytest.raises(NoChampion):
        reader.refresh()


def test_a_verdict_stays_with_its_version(tracking: Tracking) -> None:
    name = resolve(tracking, f"{NAME}@2")
    assert recorded_report(tracking, name) is None
    failed = report(2, lost=0.5)
    record_verdict(tracking, name, failed)
    assert recorded_report(tracking, name) == failed
    shown = {version.version: version.verdict for version in name_status(tracking, NAME).candidates}
    assert shown == {4: "not gated", 3: "not gated", 2: "fail", 1: "not gated"}
    with pytest.raises(ValueError, match="medicine@3"):
        record_verdict(tracking, name, report(3))


def test_the_whole_status_is_json_with_champion_and_aliases(ledger: Ledger) -> None:
    ledger.promote(2, report(2), reason="gained")
    shown = status_of(ledger.tracking)
    assert type(shown).model_validate_json(shown.model_dump_json()) == shown
    [name] = shown.names
    assert (name.champion, name.drift, name.warnings) == (2, None, ())
    assert [version.aliases for version in name.candidates if version.champion] == [("champion",)]


def test_the_status_shows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.status.registered_names", lambda tracking: ())
    assert status_of(Tracking.at(tmp_path, "postgresql://me:hush@db/runs")).uri == "postgresql://me:***@db/runs"


def test_every_error_of_the_registry_has_one_root() -> None:
    for kind in (ChampionMoved, NoChampion, NothingToRollBackTo, PromotionRefused, UnknownRelease):
        assert issubclass(kind, RegistryError)


def test_an_override_in_force_is_told_until_a_gate_passes(ledger: Ledger) -> None:
    assert ledger.override_in_force() is None
    ledger.promote(1, None, override=True, reason="a demo")
    made = ledger.override_in_force()
    assert made is not None and (made.reason, ledger.promotions()) == ("a demo", 0)
    ledger.promote(2, report(2))
    assert ledger.override_in_force() is None and ledger.promotions() == 1
    ledger.rollback("slow")
    back = ledger.override_in_force()
    assert back is not None and (back.reason, ledger.promotions()) == ("a demo", 1)


def test_a_report_of_another_version_is_said_in_one_sentence(tracking: Tracking) -> None:
    record_verdict(tracking, ReleaseName(NAME, 1), report(1))
    with tracking.client() as client:
        stored = json.loads(client.get_model_version(NAME, "1").tags[REPORT_TAG])
        client.set_model_version_tag(NAME, "1", REPORT_TAG, json.dumps({**stored, "gone": 1}))
    with pytest.raises(UnreadableReport, match="another version of Graftline .it differs in gone"):
        recorded_report(tracking, ReleaseName(NAME, 1))
