"""One registry, many hands: over SQLite, PostgreSQL and an MLflow server on PostgreSQL the same tests give the same results."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from gated_names import report
from mlflow_server import mlflow_server
from small_releases import write_directory
from stores import store_at
from test_transfer import files_of

from registry.canary import CanaryLedger
from registry.doctor import examine
from registry.errors import ApprovalRefused, AwaitsApproval, ChampionMoved, NoChampion, PromotionRefused
from registry.ledger import Ledger
from registry.ledger_chain import ENTRY_TAG
from registry.ledger_reader import LedgerReader
from registry.manifest import read_manifest
from registry.names import ReleaseName, resolve
from registry.policy import Policy, set_policy
from registry.release import load_release, publish
from registry.stale_runs import stale_runs
from registry.status import name_status
from registry.tracking import PROCESS_TAG, Tracking
from registry.transfer import export_release, import_release
from registry.verdicts import record_verdict

NAME = "medicine"
RIVALS = 16
pytestmark = pytest.mark.slow
POLICY = Policy(
    protected=("boxes",), margin=0.1, alpha=0.05, round_items=20, domain_items=50, max_rounds=4, time_budget_s=60, approvals=2
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "server"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """None: the SQLite file of each test's home."""
    if request.param == "sqlite":
        yield None
        return
    store = request.getfixturevalue("postgres").database()
    if request.param == "postgresql":
        yield store
        return
    with mlflow_server(tmp_path_factory.mktemp("server"), store, workers=2) as address:
        yield address


@pytest.fixture
def tracking(uri: str | None, tmp_path: Path) -> Iterator[Tracking]:
    """Three versions, not gated."""
    home = tmp_path / "home"
    tracking = store_at(home) if uri is None else Tracking.at(home, uri).create()
    for version in (1, 2, 3):
        publish(tracking, NAME, write_directory(tmp_path / str(version), backbone=f"tiny {version}"))
    yield tracking
    with tracking.client() as client:
        for name in (NAME, f"{NAME}.releases", "law"):
            if client.search_registered_models(f"name='{name}'"):
                client.delete_registered_model(name)
    for run in stale_runs(tracking, after_h=-1):
        tracking.end_run(run.run_id)


@pytest.fixture
def ledger(tracking: Tracking) -> Ledger:
    return Ledger(tracking, NAME)


def test_published_files_come_back_and_names_resolve(tracking: Tracking, ledger: Ledger, tmp_path: Path) -> None:
    released = load_release(tracking, NAME, 2)
    assert released.manifest == read_manifest(tmp_path / "2")
    with pytest.raises(NoChampion):
        resolve(tracking, NAME)
    ledger.promote(2, report(2), actor="ada", reason="gained")
    assert {resolve(tracking, f"{NAME}{end}").version for end in ("", "@champion", "@2", "@v2")} == {2}


def test_promotions_and_rollbacks_move_ledger_alias_and_readers(tracking: Tracking, ledger: Ledger) -> None:
    reader, seen = LedgerReader(tracking, NAME), []
    for version in (1, 2, 3):
        ledger.promote(version, report(version), actor="ada")
        seen.append((reader.refresh(), ledger.alias_version()))
    ledger.rollback("slow", actor="bob")
    assert [*seen, (reader.refresh(), ledger.alias_version())] == [(1, 1), (2, 2), (3, 3), (2, 2)]
    assert [(one.number, one.void, one.damage) for one in ledger.records()] == [(n, None, None) for n in (1, 2, 3, 4)]
    kept = ledger.report_of(3)
    assert kept is not None and kept.subject == f"{NAME}@3"
    with pytest.raises(PromotionRefused, match="boxes"):
        ledger.promote(1, report(1, lost=0.5))


def test_an_alias_moved_by_hand_is_drift_and_repaired(tracking: Tracking, ledger: Ledger) -> None:
    ledger.promote(1, report(1))
    with tracking.client() as client:
        client.set_registered_model_alias(NAME, "champion", "3")
    drift = ledger.drift()
    assert drift is not None and (drift.champion, drift.alias) == (1, 3) and LedgerReader(tracking, NAME).refresh() == 1
    assert [one.state for one in examine(tracking, NAME, repair=True)] == ["repaired"]
    assert ledger.alias_version() == 1 and examine(tracking, NAME) == ()


def test_the_whole_status_says_the_same(tracking: Tracking, ledger: Ledger) -> None:
    record_verdict(tracking, ReleaseName(NAME, 3), report(3, lost=0.5))
    ledger.promote(1, report(1), actor="ada", reason="gained")
    ledger.promote(2, None, actor="ada", override=True, reason="a demo")
    shown = name_status(tracking, NAME)
    assert shown.champion == 2 and shown.drift is None
    assert [(one.version, one.verdict, one.aliases, one.champion, one.overridden) for one in shown.candidates] == [
        (3, "fail", (), False, False),
        (2, "not gated", ("champion",), True, True),
        (1, "pass", (), False, False),
    ]
    assert [(one.number, one.kind, one.version, one.verdict, one.actor, one.reason) for one in shown.history] == [
        (1, "promote", 1, "pass", "ada", "gained"),
        (2, "override", 2, "none", "ada", "a demo"),
    ]
    assert shown.warnings == (f"{NAME}@2 is served by an override (ada: a demo); its gate verdict was: none.",)


def test_an_export_goes_into_another_name_and_back(tracking: Tracking, tmp_path: Path) -> None:
    record_verdict(tracking, ReleaseName(NAME, 1), report(1))
    made = export_release(tracking, ReleaseName(NAME, 1), tmp_path / "out.tar.gz")
    done = import_release(tracking, tmp_path / "out.tar.gz", "law", sha256=made.sha256)
    assert files_of(done.release) == files_of(load_release(tracking, NAME, 1)) and done.origin.gate_verdict == "pass"
    assert resolve(tracking, "law@candidate") == ReleaseName("law", 1)
    with pytest.raises(NoChampion):
        resolve(tracking, "law")


def test_two_people_promote_and_one_cannot(tracking: Tracking, ledger: Ledger) -> None:
    set_policy(tracking, NAME, POLICY, actor="ada", reason="an audit")
    with pytest.raises(AwaitsApproval):
        ledger.promote(1, report(1), actor="bob")
    with pytest.raises(ApprovalRefused):
        ledger.approve(1, actor="bob")
    assert [one.actor for one in name_status(tracking, NAME).proposals] == ["bob"]
    ledger.approve(1, actor="carol")
    assert ledger.champion_version() == 1 and name_status(tracking, NAME).proposals == ()


def test_an_edited_entry_is_written_back(tracking: Tracking, ledger: Ledger) -> None:
    for version in (1, 2):
        ledger.promote(version, report(version))
    with tracking.client() as client:
        stored = json.loads(client.get_model_version(f"{NAME}.releases", "1").tags[ENTRY_TAG])
        client.set_model_version_tag(f"{NAME}.releases", "1", ENTRY_TAG, json.dumps({**stored, "adapter_version": 3}))
    assert [(one.damage, one.told_by) for one in ledger.records()] == [("edited", 2), (None, None)]
    assert [one.state for one in examine(tracking, NAME, repair=True)] == ["repaired"]
    assert [one.damage for one in ledger.records()] == [None, None] and LedgerReader(tracking, NAME).refresh() == 2


def test_a_champion_whose_version_was_deleted_can_be_left(tracking: Tracking, ledger: Ledger) -> None:
    for version in (1, 2):
        ledger.promote(version, report(version))
    with tracking.client() as client:
        client.delete_model_version(NAME, "2")
    assert [one.id for one in examine(tracking, NAME)] == ["champion-deleted:2:2"] and ledger.alias_version() is None
    ledger.rollback("it is gone")
    assert ledger.champion_version() == ledger.alias_version() == 1 and examine(tracking, NAME) == ()


def test_canaries_go_with_the_champion_beside_which_they_began(tracking: Tracking, ledger: Ledger) -> None:
    canaries, reader = CanaryLedger(tracking, NAME), LedgerReader(tracking, NAME)
    ledger.promote(1, report(1))
    canaries.start(2, 0.1, report(2))
    reader.refresh()
    assert reader.canary is not None and reader.canary.release.version == 2
    ledger.promote(3, report(3))
    assert reader.refresh() == 3 and reader.canary is None


def test_a_run_that_nobody_goes_on_with_is_found(tracking: Tracking) -> None:
    run = tracking.start_run("sweep", "trial", tags={PROCESS_TAG: "another/1@1"})
    assert [one.run_id for one in stale_runs(tracking, after_h=-1)] == [run] and stale_runs(tracking, after_h=1) == ()


def test_of_sixteen_promoters_in_threads_exactly_one_wins(ledger: Ledger) -> None:
    ledger.promote(1, report(1))
    head, passed, outcomes = ledger.head(), {version: report(version) for version in (2, 3)}, list[str]()
    barrier = threading.Barrier(RIVALS)

    def rival(index: int) -> None:
        barrier.wait()
        try:
            version = 2 + index % 2
            outcomes.append(f"won {ledger.promote(version, passed[version], actor=str(index), expected_head=head).number}")
        except ChampionMoved as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=rival, args=(index,)) for index in range(RIVALS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one_won(ledger, outcomes)


# One process that imports, and forks: sixteen that import MLflow by themselves would take a minute.
PROMOTERS = """
import json, os, sys, time
from pathlib import Path
from registry.errors import ChampionMoved
from registry.ledger import Ledger
from registry.ledger_chain import Head
from registry.tracking import Tracking, _quiet_import

home, uri, head, folder, rivals = sys.argv[1:]
_quiet_import()
begin = time.time() + 1
children = []
for index in range(int(rivals)):
    child = os.fork()
    if child:
        children.append(child)
        continue
    try:
        ledger = Ledger(Tracking.at(Path(home), uri or None), "medicine")
        seen = Head(**json.loads(head))
        time.sleep(max(0, begin - time.time()))
        made = ledger.promote(2 + index % 2, None, override=True, reason="a race", actor=str(index), expected_head=seen)
        said = f"won {made.number}"
    except ChampionMoved as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    Path(folder, str(index)).write_text(said)
    os._exit(0)
for child in children:
    os.waitpid(child, 0)
"""


def test_of_sixteen_promoters_in_processes_exactly_one_wins(ledger: Ledger, uri: str | None, tmp_path: Path) -> None:
    ledger.promote(1, report(1))
    (tmp_path / "said").mkdir()
    asked = [str(tmp_path / "home"), uri or "", json.dumps(asdict(ledger.head())), str(tmp_path / "said"), str(RIVALS)]
    done = subprocess.run([sys.executable, "-c", PROMOTERS, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one_won(ledger, [file.read_text() for file in (tmp_path / "said").iterdir()])


def one_won(ledger: Ledger, outcomes: list[str]) -> None:
    winner = ledger.head()
    assert len(outcomes) == RIVALS and [one for one in outcomes if one.startswith("won")] == [f"won {winner.number}"], outcomes
    told = f"{winner.actor} made {NAME}@{winner.adapter_version} champion"
    assert all(told in one for one in outcomes if not one.startswith("won")), outcomes
    assert len(ledger.entries()) == 2 and ledger.drift() is None
    assert all(one.void is None or one.lost for one in ledger.records()) and examine(ledger.tracking, NAME) == ()
    assert LedgerReader(ledger.tracking, NAME).refresh() == winner.adapter_version
