"""What can go wrong with a registry: each is found by name, repaired where it can be, and says how to go on where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gated_names import report
from small_releases import write_directory
from stores import store_at

from registry.canary import CanaryLedger
from registry.canary_chain import DIGEST_TAG as CANARY_DIGEST
from registry.doctor import Finding, examine
from registry.errors import AwaitsApproval, CanaryRefused, DamagedRelease, NothingToRollBackTo, RefusedName, UnknownRelease
from registry.last_entry import MADE_BY_TAG
from registry.ledger import Ledger
from registry.ledger_chain import BEFORE_TAG, ENTRY_TAG, PROPOSAL_TAG
from registry.ledger_reader import LedgerReader
from registry.names import ReleaseName, registered_names, resolve
from registry.policy import POLICY_TAG, Policy, set_policy
from registry.proposals import REPORT_TAG
from registry.release import MANIFEST_TAG, load_release, publish
from registry.stale_runs import stale_runs
from registry.status import name_status
from registry.tracking import PROCESS_TAG, Tracking
from service.audit import read_audit
from service.catalogue import RegistryCatalogue
from service.commands.doctor import doctor

NAME = "medicine"
DRAWN = {"round_items": 8, "domain_items": 8, "max_rounds": 1, "time_budget_s": 60}
ENTRIES = f"{NAME}.releases"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """medicine 1, 2 and 3, champions in turn; made once and copied for each test."""
    home = tmp_path_factory.mktemp("made")
    tracking = store_at(home)
    for version in (1, 2, 3):
        publish(tracking, NAME, write_directory(home / str(version), backbone=f"tiny {version}"))
    for version in (1, 2, 3):
        Ledger(tracking, NAME).promote(version, report(version), actor="ada")
    return home


@pytest.fixture
def tracking(made: Path, tmp_path: Path) -> Tracking:
    """Its artifacts and cache stay where they were made: nothing writes to them."""
    (tmp_path / "mlflow.db").write_bytes((made / "mlflow.db").read_bytes())
    (tmp_path / "releases").symlink_to(made / "releases")
    return Tracking.at(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Tracking:
    """An empty one, to which a test may write."""
    return store_at(tmp_path / "own")


def said(tracking: Tracking, **options: object) -> list[str]:
    return [f"{one.id.partition(':')[0]} {one.state}" for one in examine(tracking, NAME, **options)]  # type: ignore[arg-type]


def set_tag(tracking: Tracking, number: int, tag: str, value: str) -> None:
    with tracking.client() as client:
        client.set_model_version_tag(ENTRIES, str(number), tag, value)


def forge(tracking: Tracking, number: int) -> None:
    with tracking.client() as client:
        stored = json.loads(client.get_model_version(ENTRIES, str(number)).tags[ENTRY_TAG])
    set_tag(tracking, number, ENTRY_TAG, json.dumps({**stored, "reason": "another story"}))


def delete(tracking: Tracking, name: str, version: int) -> None:
    with tracking.client() as client:
        client.delete_model_version(name, str(version))


def test_a_healthy_name_has_no_findings(tracking: Tracking) -> None:
    assert examine(tracking, NAME) == ()


def test_a_name_that_is_not_there_is_no_healthy_one(tracking: Tracking) -> None:
    with pytest.raises(UnknownRelease):
        examine(tracking, "law")


class Killed(BaseException):
    """In the place of a kill, at a point that a test can choose."""


def test_a_promoter_killed_before_the_alias_leaves_one_that_the_doctor_moves(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Ledger) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Ledger, "point_alias", killed)
        Ledger(tracking, NAME).promote(1, report(1), actor="ada")
    ledger = Ledger(tracking, NAME)
    assert (ledger.champion_version(), ledger.alias_version()) == (1, 3)
    [found] = examine(tracking, NAME)
    assert found.repairable and "was cut off before it moved" in found.sentence
    assert said(tracking, repair=True) == ["alias repaired"]
    assert examine(tracking, NAME) == () and ledger.alias_version() == 1


def test_an_alias_moved_by_hand_or_taken_away_is_set_again(tracking: Tracking) -> None:
    with tracking.client() as client:
        client.set_registered_model_alias(NAME, "champion", "2")
    assert said(tracking) == ["alias open"] and said(tracking, repair=True) == ["alias repaired"]
    with tracking.client() as client:
        client.delete_registered_model_alias(NAME, "champion")
    assert "is gone" in examine(tracking, NAME)[0].sentence
    assert said(tracking, repair=True) == ["alias repaired"] and examine(tracking, NAME) == ()


def test_an_edited_entry_is_written_back_from_the_copy_above_it(tracking: Tracking) -> None:
    before = Ledger(tracking, NAME).records()
    forge(tracking, 2)
    assert said(tracking) == ["entry-edited open"] and said(tracking, repair=True) == ["entry-edited repaired"]
    assert examine(tracking, NAME) == () and Ledger(tracking, NAME).records() == before


@pytest.mark.parametrize("text", ["", "[]", '{"number": 1}'])
def test_a_copy_that_was_edited_is_written_again_before_it_is_needed(tracking: Tracking, text: str) -> None:
    set_tag(tracking, 2, BEFORE_TAG, text)
    assert said(tracking) == ["copy-edited open"]
    assert said(tracking, repair=True) == ["copy-edited repaired"] and examine(tracking, NAME) == ()
    forge(tracking, 1)
    assert said(tracking) == ["entry-edited open"], "and now it tells what entry 1 said"


def test_the_last_entry_that_was_edited_is_written_back_from_the_copy_of_its_version(tracking: Tracking) -> None:
    before = Ledger(tracking, NAME).records()
    forge(tracking, 3)
    [found] = examine(tracking, NAME)
    assert found.id == "entry-edited:3" and found.repairable and f"the copy that {NAME}@3 carries" in found.sentence
    assert LedgerReader(tracking, NAME).refresh() == 2 and "graftline doctor" in (name_status(tracking, NAME).drift or "")
    running = LedgerReader(tracking, NAME)
    assert running.refresh() == 2
    assert said(tracking, repair=True) == ["entry-edited repaired"]
    assert examine(tracking, NAME) == () and Ledger(tracking, NAME).records() == before and running.refresh() == 3


def test_the_last_entry_that_was_deleted_is_told_and_its_promotion_is_not_undone_in_silence(tracking: Tracking) -> None:
    delete(tracking, ENTRIES, 3)
    ledger = Ledger(tracking, NAME)
    for _ in range(2):
        [found] = examine(tracking, NAME, repair=True)
        assert found.id == "entry-gone:3" and found.is_open and ledger.alias_version() == 3
    assert "ada made medicine@3 champion (promote" in found.sentence and "Without it medicine@2 is champion" in found.sentence
    assert "Entry 3 of medicine was deleted" in (name_status(tracking, NAME).drift or "")
    assert said(tracking, accept="bob meant it") == ["entry-gone accepted"]
    assert said(tracking, repair=True) == ["entry-gone accepted", "alias repaired"] and ledger.alias_version() == 2
    ledger.promote(1, report(1), actor="ada")
    assert said(tracking) == ["entry-gone accepted"] and [one.id for one in examine(tracking, NAME)] == ["entry-gone:3"]


def test_several_entries_that_were_deleted_from_the_end_are_each_told_and_a_promotion_goes_on(tracking: Tracking) -> None:
    Ledger(tracking, NAME).rollback("slow", to=1, actor="bob")  # version 1 now tells entry 4, and no longer entry 1
    for number in (3, 4):
        delete(tracking, ENTRIES, number)
    third, fourth = examine(tracking, NAME)
    assert (third.id, fourth.id) == ("entry-gone:3", "entry-gone:4")
    assert "bob made medicine@1 champion (rollback" in fourth.sentence
    Ledger(tracking, NAME).promote(3, report(3), actor="ada")
    assert LedgerReader(tracking, NAME).refresh() == 3
    assert [one.id for one in examine(tracking, NAME)] == ["entry-gone:3", "entry-gone:4"]


@pytest.mark.parametrize("change", [{"reason": "another"}, {"adapter_version": 1}, {"parent": 1}])
def test_a_copy_that_proves_nothing_tells_of_no_entry(tracking: Tracking, change: dict[str, object]) -> None:
    with tracking.client() as client:
        told = json.loads(client.get_model_version(NAME, "3").tags[MADE_BY_TAG])
        forged = {**told, "number": 4, "entry": {**told["entry"], "parent": 3, **change}}
        client.set_model_version_tag(NAME, "2", MADE_BY_TAG, json.dumps(forged))
        client.set_model_version_tag(NAME, "1", MADE_BY_TAG, "[]")
    assert examine(tracking, NAME) == ()


def test_an_edited_entry_without_a_copy_says_what_counts_and_how_to_go_on(tracking: Tracking) -> None:
    forge(tracking, 3)  # the last one: no entry above it has a copy
    with tracking.client() as client:
        client.delete_model_version_tag(NAME, "3", MADE_BY_TAG)
    [void, alias] = examine(tracking, NAME)
    assert f"{NAME}@2 is champion, by entry 2" in void.sentence and "promote or roll back as ever" in void.sentence
    assert alias.id == "alias:2:3"
    assert said(tracking, repair=True) == ["entry-void open", "alias repaired"], "it is not put right by looking away"
    Ledger(tracking, NAME).promote(3, report(3), actor="bob")
    assert said(tracking) == ["entry-void open"]
    assert said(tracking, accept="a backup was played back") == ["entry-void accepted"]
    assert said(tracking) == ["entry-void accepted"]


def test_a_deleted_entry_counts_by_its_copy_and_stays_on_record(tracking: Tracking) -> None:
    delete(tracking, ENTRIES, 2)
    assert said(tracking, repair=True) == ["entry-deleted open"]
    assert LedgerReader(tracking, NAME).refresh() == 3
    assert said(tracking, accept="bob cleared up") == ["entry-deleted accepted"]


def test_a_deleted_entry_of_which_nothing_tells_is_found_by_its_number(tracking: Tracking) -> None:
    with tracking.client() as client:
        client.delete_model_version_tag(ENTRIES, "3", BEFORE_TAG)
    delete(tracking, ENTRIES, 2)
    assert said(tracking) == ["entry-void open", "entry-gone open"]
    assert "the copy that medicine@2 carries" in examine(tracking, NAME)[1].sentence
    with tracking.client() as client:
        client.delete_model_version_tag(NAME, "2", MADE_BY_TAG)
    assert said(tracking) == ["entry-void open", "entry-gone open", "alias open"]
    assert LedgerReader(tracking, NAME).refresh() == 1


def test_a_rival_who_lost_is_no_finding(tracking: Tracking) -> None:
    first, second = Ledger(tracking, NAME).records()[:2]
    assert second.entry is not None
    lost = second.entry.model_copy(update={"actor": "late"})
    tags = {ENTRY_TAG: lost.stored(), "graftline.ledger.entry_digest": lost.chained(first.digest)}
    with tracking.client() as client:
        client.create_model_version(ENTRIES, source=f"models:/{NAME}/2", tags=tags)
    assert Ledger(tracking, NAME).records()[-1].lost and examine(tracking, NAME) == ()
    assert name_status(tracking, NAME).warnings == ()


def test_another_gate_report_than_the_one_that_was_signed_is_found(tracking: Tracking) -> None:
    set_tag(tracking, 3, REPORT_TAG, report(3, lost=0.5).canonical())
    assert said(tracking) == ["report-edited open"]
    assert Ledger(tracking, NAME).report_of(3) is None


def test_an_edited_entry_about_a_canary_is_found(tracking: Tracking) -> None:
    CanaryLedger(tracking, NAME).start(2, 0.1, report(2), actor="ada")
    assert examine(tracking, NAME) == ()
    set_tag(tracking, 4, CANARY_DIGEST, "0" * 64)
    assert said(tracking) == ["canary-void open"]


def test_an_edited_proposal_is_found_and_one_that_lapsed_is_not(tracking: Tracking) -> None:
    ledger = Ledger(tracking, NAME)
    asked = Policy.model_validate({"protected": ["boxes"], "margin": 0.2, "alpha": 0.1, **DRAWN, "approvals": 2})
    set_policy(tracking, NAME, asked, actor="ada", reason="two people")
    for version in (1, 2):
        with pytest.raises(AwaitsApproval):
            ledger.promote(version, report(version), actor="bob")
    assert examine(tracking, NAME) == ()
    with tracking.client() as client:
        stored = json.loads(client.get_model_version(ENTRIES, "4").tags[PROPOSAL_TAG])
    set_tag(tracking, 4, PROPOSAL_TAG, json.dumps({**stored, "actor": "eve"}))
    [found] = examine(tracking, NAME)
    assert found.id == "proposal-void:4" and "was edited" in found.sentence
    ledger.approve(2, actor="ada")
    assert [one.id for one in examine(tracking, NAME)] == ["proposal-void:4"]
    assert [one.state for one in examine(tracking, NAME, accept="looked into")] == ["accepted"]


def test_a_policy_that_cannot_be_read_is_found(tracking: Tracking) -> None:
    with tracking.client() as client:
        client.set_registered_model_tag(NAME, POLICY_TAG, "gone")
    assert said(tracking) == ["policy-unreadable open"]


def test_a_champion_whose_version_was_deleted_is_named_with_those_to_go_back_to(tracking: Tracking) -> None:
    delete(tracking, NAME, 3)
    delete(tracking, NAME, 2)
    shown = name_status(tracking, NAME)  # of a registry where that happened, all else is shown as ever
    assert shown.champion == 3 and any("was deleted" in warning and "doctor medicine" in warning for warning in shown.warnings)
    [found] = examine(tracking, NAME, repair=True)
    assert found.is_open and "still there: 1." in found.sentence and "graftline rollback medicine" in found.sentence
    assert LedgerReader(tracking, NAME).refresh() == 3, "the ledger's word stands until somebody goes back"
    ledger = Ledger(tracking, NAME)
    with pytest.raises(NothingToRollBackTo):
        ledger.rollback("it is gone", to=2)
    made = ledger.rollback("it is gone")  # past 2, which is gone as well
    assert made.entry is not None and made.entry.adapter_version == 1
    assert examine(tracking, NAME) == () and LedgerReader(tracking, NAME).refresh() == ledger.alias_version() == 1


def test_a_champion_whose_files_are_gone_is_found(tracking: Tracking, tmp_path: Path) -> None:
    (tmp_path / "releases").unlink()
    with tracking.client() as client:
        location = client.get_logged_model(str(client.get_model_version(NAME, "3").source).rpartition("/")[2]).artifact_location
    moved = Path(location.removeprefix("file://"))
    moved.rename(tmp_path / "elsewhere")
    try:
        assert said(tracking) == ["champion-damaged open"]
    finally:
        (tmp_path / "elsewhere").rename(moved)


def damaged(tracking: Tracking, home: Path, add: str | None = None) -> Path:
    """A champion of its own, whose weights are gone from the registry, or beside which there is another file."""
    publish(tracking, "law", write_directory(home / "law", backbone="tiny law"))
    Ledger(tracking, "law").promote(1, None, override=True, reason="a test of what comes after")
    with tracking.client() as client:
        location = client.get_logged_model(str(client.get_model_version("law", "1").source).rpartition("/")[2]).artifact_location
    files = Path(location.removeprefix("file://"))
    if add is None:
        next(files.rglob("*.safetensors")).unlink()
    else:
        (files / add).write_text("more")
    return files


def test_a_copy_on_this_machine_hides_no_damage_and_puts_it_right(store: Tracking, tmp_path: Path) -> None:
    damaged(store, tmp_path)
    [found] = examine(store, "law")
    assert found.id == "champion-damaged:1" and found.is_open and "--repair" in found.sentence
    assert [one.state for one in examine(store, "law", repair=True)] == ["repaired"]
    assert examine(store, "law") == ()
    shutil.rmtree(store.cache)
    assert load_release(store, "law", 1).version == 1, "fetched from the registry again"


def test_what_a_copy_cannot_put_right_stays_open_with_the_reason(store: Tracking, tmp_path: Path) -> None:
    damaged(store, tmp_path, add="more.txt")
    [found] = examine(store, "law", repair=True)
    assert found.is_open and "did not help" in found.sentence and "more.txt" in found.sentence


def test_a_champion_whose_files_were_exchanged_is_found_and_not_served(tracking: Tracking) -> None:
    catalogue = RegistryCatalogue(tracking)
    assert catalogue.champions()[NAME] == 3 and catalogue.open(ReleaseName(NAME, 3)).version == 3
    with tracking.client() as client:
        other = client.get_model_version(NAME, "1")
        client.set_model_version_tag(NAME, "3", MANIFEST_TAG, other.tags[MANIFEST_TAG])
    [found] = examine(tracking, NAME)
    assert found.id == "champion-exchanged:3:3" and "rollback medicine" in found.sentence
    assert found.sentence in name_status(tracking, NAME).warnings
    for use in (lambda: resolve(tracking, NAME), lambda: catalogue.open(ReleaseName(NAME, 3))):
        with pytest.raises(DamagedRelease, match=r"medicine@3 was promoted with the manifest .* exchanged"):
            use()
    assert catalogue.open(ReleaseName(NAME, 2)).version == 2
    Ledger(tracking, NAME).rollback("exchanged")
    assert resolve(tracking, NAME) == ReleaseName(NAME, 2) and examine(tracking, NAME) == ()


def test_a_canary_whose_files_were_exchanged_gets_no_traffic_and_is_not_promoted(tracking: Tracking) -> None:
    canaries, catalogue = CanaryLedger(tracking, NAME), RegistryCatalogue(tracking)
    started = canaries.start(2, 0.1, report(2))
    catalogue.champions()
    assert catalogue.open(started.release).version == 2 and canaries.exchanged(started) is None and not examine(tracking, NAME)
    with tracking.client() as client:
        client.set_model_version_tag(NAME, "2", MANIFEST_TAG, client.get_model_version(NAME, "1").tags[MANIFEST_TAG])
    with pytest.raises(DamagedRelease, match=r"medicine@2 was started with the manifest .* exchanged"):
        catalogue.open(started.release)
    for act in (lambda: canaries.set_share(0.5), lambda: canaries.finish(report(2))):
        with pytest.raises(CanaryRefused, match="exchanged"):
            act()
    [found] = examine(tracking, NAME)
    assert found.id == "canary-exchanged:2:4" and found.sentence in name_status(tracking, NAME).warnings
    assert canaries.set_share(0.05).manifest == started.manifest, "less of it may go on, by what it was started with"
    canaries.end("stop", "exchanged")
    catalogue.champions()
    assert catalogue.open(started.release).version == 2 and examine(tracking, NAME) == ()
    assert canaries.start(2, 0.1, report(2)).manifest != started.manifest


def test_a_canary_whose_version_was_deleted_is_told(tracking: Tracking) -> None:
    CanaryLedger(tracking, NAME).start(2, 0.1, report(2))
    delete(tracking, NAME, 2)
    [found] = examine(tracking, NAME)
    assert found.id == "canary-exchanged:2:4" and "has none now: it was deleted" in found.sentence


def test_a_new_version_one_is_not_taken_for_the_deleted_one_that_was_promoted(tracking: Tracking, tmp_path: Path) -> None:
    with tracking.client() as client:
        client.delete_registered_model(NAME)
    again = write_directory(tmp_path / "again", backbone="tiny again")
    for _ in range(2):
        with pytest.raises(RefusedName, match=r"medicine was deleted and medicine\.releases still says"):
            publish(tracking, NAME, again)
    assert NAME not in registered_names(tracking), "nothing is left of it"
    with tracking.client() as client:
        client.delete_registered_model(ENTRIES)
    assert publish(tracking, NAME, again).version == 1


def begun(process: str | None) -> Callable[[Tracking], str]:
    def begin(tracking: Tracking) -> str:
        run = tracking.start_run("sweep", "trial 0")
        if process is not None:
            tracking.set_tags(run, {PROCESS_TAG: process})
        return run

    return begin


def test_a_run_of_a_process_that_ended_is_stale_and_those_of_others_are_not(tracking: Tracking) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    here, gone = socket.gethostname(), dead.stdout.strip()
    mine, killed = begun(None)(tracking), begun(f"{here}/{gone}@1000000000")(tracking)
    reused = begun(f"{here}/{os.getpid()}@1000000000")(tracking)
    away = begun(f"another/{gone}@1000000000")(tracking)
    ended = begun(f"{here}/{gone}@1000000000")(tracking)
    tracking.end_run(ended)
    assert {run.run_id for run in stale_runs(tracking, after_h=1)} == {killed, reused}
    assert {run.run_id for run in stale_runs(tracking, after_h=-1)} == {killed, reused, away}
    assert mine not in {run.run_id for run in stale_runs(tracking, after_h=-1)}


def test_a_study_that_another_process_goes_on_with_is_not_stale(tracking: Tracking) -> None:
    study = tracking.start_run("sweep", "study", tags={PROCESS_TAG: f"{socket.gethostname()}/1@1000000000"})
    trial = tracking.start_child(study, "trial 0")
    assert stale_runs(tracking, after_h=1) == ()
    tracking.end_run(trial)
    assert [run.run_id for run in stale_runs(tracking, after_h=1)] == [study]


def test_the_command_repairs_tells_and_ends_as_scripts_can_read(
    tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(f"{socket.gethostname()}/1@1000000000")(tracking)
    with tracking.client() as client:
        client.set_registered_model_alias(NAME, "champion", "2")
    assert doctor(None, False, None, 168, tmp_path, None, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in told[NAME]] == ["alias:3:2"] and [one["id"] for one in told["runs"]] == [f"run:{run}"]
    assert doctor(None, True, None, 168, tmp_path, None, as_json=False) == 0
    assert f"{NAME}: repaired: " in capsys.readouterr().out
    assert doctor(None, False, None, 168, tmp_path, None, as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == [f"{NAME}: healthy", "runs: healthy"]
    with tracking.client() as client:
        assert client.get_run(run).info.status == "KILLED"
    [line] = read_audit(tmp_path)[0]
    assert (line.act, line.detail["repaired"]) == ("registry.repair", [f"{NAME}: alias:3:2", f"runs: run:{run}"])


def test_accepting_needs_a_name_and_a_reason(tracking: Tracking, tmp_path: Path) -> None:
    for name, reason in ((None, "seen"), (NAME, " ")):
        with pytest.raises(RefusedName, match="needs a reason"):  # an error of ours: by command a sentence and exit code 2
            doctor(name, False, reason, 168, tmp_path, None, as_json=True)


def test_a_finding_is_open_until_it_is_dealt_with() -> None:
    assert Finding("a", "b").is_open and not Finding("a", "b", state="repaired").is_open


KILLED_PROMOTER = """
import os, signal, sys
from pathlib import Path
from registry.ledger import Ledger
from registry.tracking import Tracking

tracking = Tracking.at(Path(sys.argv[1]))
tracking.start_run("medicine", "a run of mine")
Ledger.point_alias = lambda self: os.kill(os.getpid(), signal.SIGKILL)
Ledger(tracking, "medicine").promote(1, None, override=True, reason="a test", actor="ada")
"""


@pytest.mark.slow
def test_a_promoter_that_is_really_killed_is_put_right(tracking: Tracking, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_PROMOTER, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ledger = Ledger(tracking, NAME)
    assert (ledger.champion_version(), ledger.alias_version()) == (1, 3)
    assert doctor(None, True, None, 168, tmp_path, None, as_json=True) == 0
    assert ledger.alias_version() == 1 and stale_runs(tracking, 168) == ()
