"""Entries that were edited, forged or deleted: what the ledger says then, to whoever knew it before and to whoever did not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from gated_names import NAME, report
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from registry.errors import ChampionMoved
from registry.ledger import Ledger
from registry.ledger_chain import BEFORE_TAG, DIGEST_TAG, ENTRY_TAG, LedgerEntry, copied
from registry.ledger_reader import LedgerReader
from registry.status import name_status
from registry.tracking import Tracking

ENTRIES = f"{NAME}.releases"


@pytest.fixture(scope="module")
def made(prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    shutil.copy(prepared_store, home / "mlflow.db")
    for version in (1, 2, 3):
        Ledger(Tracking.at(home), NAME).promote(version, report(version), actor="ada")
    return home / "mlflow.db"


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Ledger:
    """Versions 1, 2 and 3 were champions in turn."""
    shutil.copy(made, tmp_path / "mlflow.db")
    return Ledger(Tracking.at(tmp_path), NAME)


def edit(tracking: Tracking, number: int, **changes: object) -> None:
    with tracking.client() as client:
        said = json.loads(client.get_model_version(ENTRIES, str(number)).tags[ENTRY_TAG])
        client.set_model_version_tag(ENTRIES, str(number), ENTRY_TAG, json.dumps({**said, **changes}))


def without_copies(tracking: Tracking) -> None:
    """As entries were before they carried copies."""
    with tracking.client() as client:
        for number in (2, 3):
            client.delete_model_version_tag(ENTRIES, str(number), BEFORE_TAG)


def voids(ledger: Ledger) -> list[bool]:
    return [recorded.void is not None for recorded in ledger.records()]


def fresh(tracking: Tracking) -> int:
    """The champion to a process that has read nothing before."""
    return LedgerReader(tracking, NAME).refresh()


def test_an_entry_that_was_edited_is_told_from_the_copy_in_the_one_above_it(ledger: Ledger) -> None:
    edit(ledger.tracking, 2, adapter_version=4)
    told = ledger.records()[1]
    assert told.entry is not None
    assert (told.entry.adapter_version, told.damage, told.told_by) == (2, "edited", 3)
    assert fresh(ledger.tracking) == ledger.champion_version() == 3
    assert any("Entry 2 of the ledger was edited" in warning for warning in name_status(ledger.tracking, NAME).warnings)


def test_an_entry_that_was_deleted_is_told_from_the_copy_in_the_one_above_it(ledger: Ledger) -> None:
    with ledger.tracking.client() as client:
        client.delete_model_version(ENTRIES, "2")
    assert [(one.number, one.damage) for one in ledger.records()] == [(1, None), (2, "deleted"), (3, None)]
    assert fresh(ledger.tracking) == 3
    assert ledger.rollback("worse").number == 4 and fresh(ledger.tracking) == 2


def test_an_edited_entry_that_no_copy_tells_is_void_with_all_that_build_on_it(ledger: Ledger) -> None:
    without_copies(ledger.tracking)
    edit(ledger.tracking, 2, adapter_version=4)
    assert voids(ledger) == [False, True, True]
    assert fresh(ledger.tracking) == 1
    assert any("it was edited" in warning for warning in name_status(ledger.tracking, NAME).warnings)


def test_an_edit_with_a_digest_of_its_own_breaks_the_chain_above_it(ledger: Ledger) -> None:
    first = ledger.records()[0].entry
    assert first is not None
    forged = first.model_copy(update={"reason": "another story"})
    with ledger.tracking.client() as client:
        client.set_model_version_tag(ENTRIES, "1", ENTRY_TAG, forged.stored())
        client.set_model_version_tag(ENTRIES, "1", DIGEST_TAG, forged.chained(""))
    assert voids(ledger) == [False, True, True]


@pytest.mark.parametrize("how", ["edited", "deleted"])
def test_where_the_last_entry_is_gone_the_one_before_it_holds_for_everybody(ledger: Ledger, how: str) -> None:
    knowing = LedgerReader(ledger.tracking, NAME)
    assert knowing.refresh() == 3
    if how == "edited":
        edit(ledger.tracking, 3, adapter_version=4)
    else:
        with ledger.tracking.client() as client:
            client.delete_model_version(ENTRIES, "3")
    assert knowing.refresh() == fresh(ledger.tracking) == ledger.champion_version() == 2
    ledger.promote(4, report(4))
    assert knowing.refresh() == fresh(ledger.tracking) == 4


def test_whoever_saw_an_entry_that_is_gone_cannot_build_on_it(ledger: Ledger) -> None:
    seen = ledger.head()
    edit(ledger.tracking, 3, adapter_version=4)
    with pytest.raises(ChampionMoved):
        ledger.promote(1, report(1), expected_head=seen)


def test_a_later_entry_cannot_say_that_the_champion_was_another(ledger: Ledger) -> None:
    """Its copy is of an entry that is there whole, and says something else."""
    head = ledger.records()[-1]
    assert head.entry is not None
    other = head.entry.model_copy(update={"adapter_version": 1})
    append(ledger, entry_on(ledger, 3), other.chained(ledger.records()[1].digest), other)
    assert voids(ledger) == [False, False, False, True] and fresh(ledger.tracking) == ledger.champion_version() == 3


def test_a_later_copy_cannot_make_a_rival_win_who_lost(ledger: Ledger) -> None:
    lost = entry_on(ledger, 2)
    append(ledger, lost, ledger.records()[1].digest)  # entry 4, which comes after 3 did
    told = lost.model_copy(update={"parent": 3})
    append(ledger, entry_on(ledger, 4), told.chained(ledger.records()[2].digest), told, number=4)
    assert voids(ledger) == [False, False, False, True, True] and fresh(ledger.tracking) == 3


def test_two_who_have_read_different_histories_read_the_whole_one_once_one_of_them_writes(ledger: Ledger) -> None:
    knowing = LedgerReader(ledger.tracking, NAME)
    assert knowing.refresh() == 3
    without_copies(ledger.tracking)
    edit(ledger.tracking, 2, adapter_version=4)
    append(ledger, entry_on(ledger, 1), ledger.records()[0].digest)
    assert knowing.refresh() == fresh(ledger.tracking) == 4


def test_who_knew_the_ledger_and_who_did_not_read_a_forged_copy_alike(ledger: Ledger) -> None:
    """A rival who built on entry 2, and one who says that the rival had built on entry 3: both come in one look."""
    knowing = LedgerReader(ledger.tracking, NAME)
    assert knowing.refresh() == 3
    lost = entry_on(ledger, 2)
    append(ledger, lost, ledger.records()[1].digest)
    told = lost.model_copy(update={"parent": 3})
    append(ledger, entry_on(ledger, 4), told.chained(ledger.records()[2].digest), told, number=4)
    assert knowing.refresh() == fresh(ledger.tracking) == 3


@dataclass(frozen=True)
class Torn(Tracking):
    """As PostgreSQL tells a page while somebody writes: its oldest entry without its tags."""

    @contextmanager
    def client(self) -> Iterator[MlflowClient]:
        with super().client() as client:
            search = client.search_model_versions

            def torn(*asked: object, **options: object) -> Sequence[ModelVersion]:
                page = search(*asked, **options)  # type: ignore[arg-type]
                if page:
                    page[-1]._tags = {}
                return page

            client.search_model_versions = torn  # type: ignore[method-assign, assignment]
            yield client


def test_an_entry_that_comes_without_its_tags_is_read_again(ledger: Ledger) -> None:
    whole = ledger.tracking
    torn = Torn(whole.uri, whole.artifact_root, whole.cache)
    assert LedgerReader(torn, NAME).refresh() == 3
    assert Ledger(torn, NAME).records() == ledger.records()


def entry_on(ledger: Ledger, parent: int) -> LedgerEntry:
    first = ledger.records()[0].entry
    assert first is not None
    return first.model_copy(update={"parent": parent, "adapter_version": 4, "actor": "mallory"})


def append(ledger: Ledger, entry: LedgerEntry, digest_below: str, below: LedgerEntry | None = None, number: int = 3) -> None:
    """Written past the ledger's own code, with a copy of what it says was below."""
    tags = {ENTRY_TAG: entry.stored(), DIGEST_TAG: entry.chained(digest_below)}
    if below is not None:
        tags[BEFORE_TAG] = json.dumps({"number": number, "entry": below.said(), "digest": digest_below})
    with ledger.tracking.client() as client:
        client.create_model_version(ENTRIES, source=f"models:/{NAME}/4", tags=tags)


def test_an_entry_carries_what_was_said_below_it(ledger: Ledger) -> None:
    with ledger.tracking.client() as client:
        assert client.get_model_version(ENTRIES, "3").tags[BEFORE_TAG] == copied(ledger.records()[1])
        assert BEFORE_TAG not in client.get_model_version(ENTRIES, "1").tags
