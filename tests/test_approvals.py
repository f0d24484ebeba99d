"""Two people for a promotion: what one proposes another approves, and nobody gets past it alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from gated_names import NAME, report
from live_service import live, small

from registry.canary import CanaryLedger
from registry.errors import ApprovalRefused, AwaitsApproval, PolicyRefused, PromotionRefused
from registry.ledger import Ledger
from registry.ledger_chain import PROPOSAL_TAG
from registry.policy import Policy, policies, set_policy
from registry.release import MANIFEST_TAG, PUBLISHER_TAG
from registry.status import name_status
from registry.tracking import Tracking
from service.audit import read_audit
from service.commands.approvals import approve
from service.commands.approvals import policy as policy_command
from service.commands.releases import gate_policy, take

ONE = Policy(
    protected=("boxes",), margin=0.1, alpha=0.05, round_items=20, domain_items=50, max_rounds=4, time_budget_s=60, nats_margin=0.1
)
TWO = ONE.model_copy(update={"approvals": 2})


@pytest.fixture(scope="module")
def made(prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    shutil.copy(prepared_store, home / "mlflow.db")
    tracking = Tracking.at(home)
    Ledger(tracking, NAME).promote(1, report(1), actor="ada")
    set_policy(tracking, NAME, TWO, actor="ada", reason="an audit")
    return home / "mlflow.db"


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Ledger:
    """Version 1 is champion, and from here on a promotion takes two."""
    shutil.copy(made, tmp_path / "mlflow.db")
    return Ledger(Tracking.at(tmp_path), NAME)


def propose(ledger: Ledger, version: int, actor: str = "ada", reason: str = "") -> None:
    with pytest.raises(AwaitsApproval, match=f"graftline approve {NAME}@{version}"):
        ledger.promote(version, report(version), actor=actor, reason=reason)


def test_what_one_proposed_is_champion_once_another_one_approves(ledger: Ledger) -> None:
    propose(ledger, 2, reason="gained")
    assert ledger.champion_version() == ledger.alias_version() == 1
    made = ledger.approve(2, actor="bob")
    assert made.entry is not None
    assert (made.entry.actor, made.entry.proposed_by, made.entry.reason) == ("bob", "ada", "gained")
    assert ledger.champion_version() == ledger.alias_version() == 2
    kept = ledger.report_of(made.number)
    assert kept is not None and kept.digest() == made.entry.gate_digest
    assert not any(recorded.void or recorded.damage for recorded in ledger.records())


def test_nobody_approves_what_he_proposed_or_published(ledger: Ledger) -> None:
    with ledger.tracking.client() as client:
        client.set_model_version_tag(NAME, "2", PUBLISHER_TAG, "carol")
    propose(ledger, 2)
    for who in ("ada", "carol"):
        with pytest.raises(ApprovalRefused, match=f"{who} (proposed|published)"):
            ledger.approve(2, actor=who)
    assert ledger.champion_version() == 1
    assert ledger.approve(2, actor="bob").entry is not None


def test_two_who_propose_the_same_version_may_approve_each_others(ledger: Ledger) -> None:
    propose(ledger, 2, "ada")
    propose(ledger, 2, "bob")
    made = ledger.approve(2, actor="bob")
    assert made.entry is not None and made.entry.proposed_by == "ada"


def test_a_proposal_lapses_when_the_champion_moves(ledger: Ledger) -> None:
    propose(ledger, 2)
    propose(ledger, 3)
    ledger.approve(3, actor="bob")
    with pytest.raises(ApprovalRefused, match="lapsed when the champion moved"):
        ledger.approve(2, actor="bob")
    ledger.rollback("slow", actor="ada")  # one person is enough to go back
    assert ledger.champion_version() == 1 and name_status(ledger.tracking, NAME).proposals == ()


def test_what_was_never_proposed_is_not_approved(ledger: Ledger) -> None:
    with pytest.raises(ApprovalRefused, match="graftline promote medicine@2"):
        ledger.approve(2, actor="bob")


def test_the_same_proposal_is_made_once(ledger: Ledger) -> None:
    propose(ledger, 2)
    propose(ledger, 2)
    [shown] = name_status(ledger.tracking, NAME).proposals
    assert (shown.version, shown.actor, shown.verdict) == (2, "ada", "pass")


def test_a_release_that_did_not_pass_is_not_even_proposed(ledger: Ledger) -> None:
    with pytest.raises(PromotionRefused, match="boxes"):
        ledger.promote(2, report(2, lost=0.5), actor="ada")
    assert name_status(ledger.tracking, NAME).proposals == ()


def test_an_override_takes_two_as_well_and_stays_one(ledger: Ledger) -> None:
    with pytest.raises(AwaitsApproval):
        ledger.promote(2, report(2, lost=0.5), actor="ada", override=True, reason="a demo")
    assert "past its gate (fail)" in name_status(ledger.tracking, NAME).proposals[0].sentence
    made = ledger.approve(2, actor="bob")
    assert made.entry is not None and made.entry.is_override and made.entry.reason == "a demo"


def test_a_proposal_that_was_edited_is_none(ledger: Ledger) -> None:
    propose(ledger, 2)
    with ledger.tracking.client() as client:
        stored = client.get_model_version(f"{NAME}.releases", "2").tags[PROPOSAL_TAG]
        edited = json.dumps({**json.loads(stored), "actor": "nobody"})
        client.set_model_version_tag(f"{NAME}.releases", "2", PROPOSAL_TAG, edited)
    with pytest.raises(ApprovalRefused):
        ledger.approve(2, actor="ada")


def test_what_was_proposed_under_a_laxer_policy_does_not_pass_a_stricter_one(ledger: Ledger) -> None:
    propose(ledger, 2)
    set_policy(ledger.tracking, NAME, TWO.model_copy(update={"margin": 0.01}), actor="bob", reason="stricter")
    with pytest.raises(PolicyRefused, match="laxer in"):
        ledger.approve(2, actor="bob")


def test_whoever_lowers_the_number_of_people_still_needs_another_one(ledger: Ledger) -> None:
    set_policy(ledger.tracking, NAME, ONE, actor="ada", reason="in a hurry")
    propose(ledger, 2, "ada")
    assert any("approvals (1; the name's is 2)" in warning for warning in name_status(ledger.tracking, NAME).warnings)
    later = ONE.model_copy(update={"time_budget_s": 2 * ONE.time_budget_s})
    set_policy(ledger.tracking, NAME, later, actor="bob", reason="of another matter: it lowers nothing")
    assert ledger.asks_for_two("ada") and not ledger.asks_for_two("bob")
    assert ledger.promote(2, report(2), actor="bob").entry is not None


def test_files_that_were_exchanged_after_the_proposal_are_not_approved(ledger: Ledger) -> None:
    with ledger.tracking.client() as client:
        client.set_model_version_tag(NAME, "2", MANIFEST_TAG, "a" * 64)
    propose(ledger, 2)
    with ledger.tracking.client() as client:
        client.set_model_version_tag(NAME, "2", MANIFEST_TAG, "b" * 64)
    with pytest.raises(ApprovalRefused, match="exchanged since"):
        ledger.approve(2, actor="bob")
    propose(ledger, 2)  # what is there now, as another proposal
    assert ledger.approve(2, actor="bob").entry is not None


def test_a_canary_goes_on_while_its_promotion_waits(ledger: Ledger) -> None:
    canaries = CanaryLedger(ledger.tracking, NAME)
    propose(ledger, 2)
    canaries.start(2, 0.1, report(2), actor="bob")
    with pytest.raises(AwaitsApproval):
        canaries.finish(report(2), actor="ada")
    assert canaries.under_way() is not None
    ledger.approve(2, actor="bob")
    assert canaries.under_way() is None and ledger.champion_version() == 2


def test_nobody_gives_a_canary_traffic_alone(ledger: Ledger) -> None:
    canaries = CanaryLedger(ledger.tracking, NAME)
    with pytest.raises(ApprovalRefused, match=r"at most a share of 0, .*a share of 0\.1 .*nobody has proposed it"):
        canaries.refuse_start(2, 0.1, False, actor="ada")
    with pytest.raises(ApprovalRefused):
        canaries.start(2, 0.1, report(2), actor="ada")
    propose(ledger, 2)
    with pytest.raises(ApprovalRefused, match="ada proposed or published it"):
        canaries.start(2, 0.1, report(2), actor="ada")
    propose(ledger, 3)
    canaries.start(2, 0.1, report(2), actor="bob")
    with pytest.raises(ApprovalRefused):  # what another one started he does not make larger by himself
        canaries.set_share(0.2, actor="ada")
    canaries.set_share(0.05, actor="ada")
    assert canaries.set_share(0.5, actor="bob").share == 0.5
    canaries.end("stop", "enough", actor="ada")


def test_an_override_is_no_canary_of_one_person_whatever_the_share(ledger: Ledger) -> None:
    set_policy(ledger.tracking, NAME, TWO.model_copy(update={"canary_alone": 1.0}), actor="carol", reason="what passed is quick")
    canaries, lost = CanaryLedger(ledger.tracking, NAME), report(2, lost=0.5)
    with pytest.raises(ApprovalRefused, match="at most a share of 0, .*without a gate that passed"):
        canaries.start(2, 0.1, lost, override=True, reason="a demo", actor="ada")
    propose(ledger, 2)  # the gate of it passed then, which is no word on an override
    with pytest.raises(ApprovalRefused):
        canaries.start(2, 0.1, lost, override=True, reason="a demo", actor="bob")
    with pytest.raises(AwaitsApproval):
        ledger.promote(2, lost, override=True, reason="a demo", actor="ada")
    assert canaries.start(2, 0.1, lost, override=True, reason="a demo", actor="bob").overridden


def test_one_person_gives_a_canary_that_passed_what_the_policy_lets_him(ledger: Ledger) -> None:
    set_policy(ledger.tracking, NAME, TWO.model_copy(update={"canary_alone": 0.2}), actor="carol", reason="small ones are quick")
    canaries = CanaryLedger(ledger.tracking, NAME)
    canaries.start(2, 0.1, report(2), actor="ada")
    assert canaries.set_share(0.2, actor="ada").share == 0.2
    with pytest.raises(ApprovalRefused, match=r"at most a share of 0\.2"):
        canaries.set_share(0.21, actor="ada")
    canaries.end("stop", "enough", actor="ada")
    with pytest.raises(ApprovalRefused):  # nobody profits from what he allowed himself
        canaries.start(2, 0.1, report(2), actor="carol")


def test_a_shadow_takes_one_person(ledger: Ledger) -> None:
    assert CanaryLedger(ledger.tracking, NAME).start(2, 1.0, report(2), shadow=True, actor="ada").shadow


def test_one_person_goes_back_to_no_override_of_one(ledger: Ledger) -> None:
    set_policy(ledger.tracking, NAME, ONE, actor="carol", reason="for a week")
    ledger.promote(2, None, override=True, reason="a demo", actor="ada")
    ledger.promote(3, report(3), actor="ada")
    assert ledger.rollback("slow", actor="ada").entry is not None and ledger.champion_version() == 2  # no policy is against it
    ledger.promote(3, report(3), actor="ada")
    set_policy(ledger.tracking, NAME, TWO, actor="carol", reason="an audit")
    with pytest.raises(ApprovalRefused, match=f"{NAME}@2 became one by an override of one.*graftline promote {NAME}@2"):
        ledger.rollback("slow", to=2, actor="ada")
    ledger.rollback("slow", actor="ada")  # past it, to the one before
    assert ledger.champion_version() == 1


def test_where_the_only_earlier_champion_is_an_override_of_one_it_is_named_with_the_way_to_approve_it(
    prepared_store: Path, tmp_path: Path
) -> None:
    shutil.copy(prepared_store, tmp_path / "mlflow.db")
    ledger = Ledger(Tracking.at(tmp_path), NAME)
    ledger.promote(1, None, override=True, reason="a demo", actor="ada")
    ledger.promote(2, report(2), actor="ada")
    set_policy(ledger.tracking, NAME, TWO, actor="ada", reason="an audit")
    with pytest.raises(
        ApprovalRefused, match=f"{NAME}@1 became one by an override of one.*graftline promote {NAME}@1 --override"
    ):
        ledger.rollback("slow", actor="ada")
    assert ledger.champion_version() == 2


def test_one_person_goes_back_to_an_override_of_two(ledger: Ledger) -> None:
    with pytest.raises(AwaitsApproval):
        ledger.promote(2, None, override=True, reason="a demo", actor="ada")
    ledger.approve(2, actor="bob")
    propose(ledger, 3)
    ledger.approve(3, actor="bob")
    ledger.rollback("slow", actor="ada")
    assert ledger.champion_version() == 2


def test_the_command_of_a_promotion_says_who_is_asked_for(ledger: Ledger) -> None:
    done = take(ledger, 2, report(2), ledger.head(), override=False, reason="")
    assert not done.promoted and done.waiting is not None and "graftline approve medicine@2" in done.waiting


def test_approving_by_command_leaves_a_line_in_the_audit_log(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    propose(ledger, 2)
    monkeypatch.setenv("GRAFTLINE_ACTOR", "bob")
    approve(f"{NAME}@2", "", tmp_path, None, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"entry": 3, "release": f"{NAME}@2", "proposed_by": "ada"}
    [line] = read_audit(tmp_path)[0]
    assert (line.act, line.target, line.outcome, line.detail["proposed_by"]) == ("release.approve", f"{NAME}@2", "done", "ada")


def test_the_number_of_people_is_set_for_a_name_and_not_in_one_gate(
    tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_policy(tracking, NAME, ONE, actor="ada", reason="first")
    file = tmp_path / "two.toml"
    file.write_text("approvals = 2")
    with pytest.raises(PolicyRefused, match="graftline policy medicine --gate"):
        gate_policy(tracking, NAME, ONE, file, "because")
    with pytest.raises(PolicyRefused, match="needs a reason"):
        policy_command(NAME, file, " ", tmp_path, None, as_json=True)
    policy_command(NAME, file, "an audit", tmp_path, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["policy"]["approvals"] == 2
    assert policies(tracking, NAME)[-1].policy == TWO


@pytest.mark.slow
def test_another_key_approves_over_http(ledger: Ledger, backbone_directory: Path) -> None:
    propose(ledger, 2, "ada")
    home = ledger.tracking.cache.parent
    with live(small(backbone_directory, home)) as server:
        url = f"{server.openai_url}/releases/{NAME}/approve"
        told, again = (httpx.post(url, json={"version": 2, "reason": "seen"}, timeout=30) for _ in range(2))
    assert (told.status_code, told.json()["by"], told.json()["proposed_by"]) == (200, "anyone", "ada")
    assert (again.status_code, again.json()["error"]["code"]) == (400, "refused_by_the_ledger")
    assert Ledger(ledger.tracking, NAME).champion_version() == 2
    assert [entry.outcome for entry in read_audit(home)[0]] == ["done", "refused"]
