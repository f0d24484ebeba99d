"""Versions of a registered model are read whole, whatever others write between two pages, or between a page and its tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from gated_names import NAME

from registry import versions
from registry.evidence import Share, Start
from registry.names import ReleaseName, registered_names
from registry.tracking import Tracking
from registry.verdicts import record_start, taken_shares
from registry.versions import newest_versions, versions_after

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from postgres import Postgres

COUNT = 4  # versions of the name that every test begins with
PAGE = 2


class Busy(Tracking):
    """As MLflow over PostgreSQL: the rows of a page in one query, their tags in a second one over the same page, and others write
    in between. `meanwhile` is given each page that has rows."""

    meanwhile: Callable[[Sequence[ModelVersion]], None]

    @contextmanager
    def client(self) -> Iterator[MlflowClient]:
        with super().client() as client:
            search = client.search_model_versions

            def torn(*asked: object, **options: object) -> Sequence[ModelVersion]:
                page = search(*asked, **options)  # type: ignore[arg-type]
                if page:
                    self.meanwhile(page)
                    there = {int(version.version) for version in search(*asked, **options)}  # type: ignore[arg-type]
                    for version in page:
                        if int(version.version) not in there:
                            version._tags = {}
                return page

            with pytest.MonkeyPatch.context() as patch:  # one client serves all who ask for that store
                patch.setattr(client, "search_model_versions", torn)
                yield client


def busy(tracking: Tracking, meanwhile: Callable[[Sequence[ModelVersion]], None]) -> Busy:
    found = Busy(tracking.uri, tracking.artifact_root, tracking.cache)
    object.__setattr__(found, "meanwhile", meanwhile)
    return found


@pytest.fixture
def claims(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> frozenset[Share]:
    """A gate of each version was begun, and they are read two at a time."""
    monkeypatch.setattr(versions, "PAGE", PAGE)
    return claimed(tracking)


def claimed(tracking: Tracking) -> frozenset[Share]:
    starts = [Start(conditions="same", seed=number, alpha=0.05, num_candidates=8) for number in range(1, COUNT + 1)]
    for start in starts:
        record_start(tracking, ReleaseName(NAME, start.seed), start)
    return frozenset(start.shares[-1] for start in starts)


def by_offset(tracking: Tracking) -> set[int]:
    """What MLflow's own pages tell of the seeds, as it orders and counts them."""
    found, token = set[int](), None
    with tracking.client() as client:
        while True:
            page = client.search_model_versions(f"name='{NAME}'", max_results=PAGE, page_token=token)
            found |= {Start.model_validate_json(text).seed for version in page for text in version.tags.values()}
            token = page.token or None
            if token is None:
                return found


def numbers(found: Sequence[ModelVersion]) -> list[int]:
    return [int(version.version) for version in found]


def test_every_version_is_read_by_number(tracking: Tracking, claims: frozenset[Share]) -> None:
    assert taken_shares(tracking, NAME) == claims
    with tracking.client() as client:
        assert numbers(versions_after(client, NAME)) == [1, 2, 3, 4] and numbers(versions_after(client, NAME, 2)) == [3, 4]
        assert numbers(newest_versions(client, NAME, 3)) == [4, 3, 2]
        assert (
            versions_after(client, NAME, COUNT) == versions_after(client, "nothing") == newest_versions(client, "nothing") == []
        )


def test_a_version_that_is_edited_while_pages_are_read_hides_nothing(tracking: Tracking, claims: frozenset[Share]) -> None:
    def edited(_: object) -> None:  # of the last page, which moves to the front
        with tracking.client() as client:
            client.update_model_version(NAME, "1", "a note")

    assert 1 not in by_offset(busy(tracking, edited))  # the pages of MLflow pass it over: this test can fail
    assert taken_shares(busy(tracking, edited), NAME) == claims


def test_a_version_that_is_deleted_while_pages_are_read_hides_no_other(tracking: Tracking, claims: frozenset[Share]) -> None:
    deleted: list[int] = []

    def one(page: Sequence[ModelVersion]) -> None:
        if not deleted:
            deleted.append(int(page[0].version))
            with tracking.client() as client:
                client.delete_model_version(NAME, page[0].version)

    assert {share.seed for share in taken_shares(busy(tracking, one), NAME)} == {2, 3, 4} and deleted == [1]
    deleted.clear()
    assert by_offset(busy(tracking, one)) == {3} and deleted == [4]  # 2 is there too, on a page that nobody asks for


def test_the_newest_versions_come_with_their_tags_though_others_take_their_place(
    tracking: Tracking, claims: frozenset[Share]
) -> None:
    def published(_: object) -> None:
        with tracking.client() as client:
            for _ in range(2):
                client.create_model_version(NAME, source=str(tracking.cache))

    with busy(tracking, published).client() as client:
        [newest] = newest_versions(client, NAME)
    assert int(newest.version) == COUNT and newest.tags


def test_a_name_that_is_made_while_names_are_read_is_told_once(tracking: Tracking) -> None:
    class OneByOne(Tracking):
        @contextmanager
        def client(self) -> Iterator[MlflowClient]:
            with super().client() as client:
                search = client.search_registered_models

                def one(max_results: int, page_token: str | None) -> object:
                    page = search(max_results=1, page_token=page_token)
                    if page_token is None:
                        client.create_registered_model("anatomy")
                    return page

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(client, "search_registered_models", one)
                    yield client

    assert registered_names(OneByOne(tracking.uri, tracking.artifact_root, tracking.cache)) == [NAME]


@pytest.mark.slow
def test_on_postgresql_nothing_that_is_written_between_two_queries_takes_a_share_away(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    monkeypatch.setattr(versions, "PAGE", PAGE)
    home = tmp_path_factory.mktemp("torn")
    tracking = Tracking.at(home, postgres.database()).create()
    with tracking.client() as client:
        client.create_registered_model(NAME)
        for _ in range(COUNT):
            client.create_model_version(NAME, source=str(home))
    claims, writing, written = claimed(tracking), list[bool](), list[str]()

    def between(_: object, __: object, statement: str, *___: object) -> None:
        """Before the tags of a page are read, another one publishes two versions and edits the oldest."""
        is_second = statement.startswith("SELECT") and "LIMIT" in statement and "JOIN model_version_tags" in statement
        if is_second and not writing and len(written) < 3:  # whoever writes as fast as others read is never caught up with
            writing.append(True)
            written.append(statement)
            with tracking.client() as other:
                for _ in range(2):
                    other.create_model_version(NAME, source=str(home))
                other.update_model_version(NAME, "1", "a note")
            writing.clear()

    event.listen(Engine, "before_cursor_execute", between)
    try:
        with tracking.client() as client:
            page = client.search_model_versions(f"name='{NAME}'", max_results=PAGE)
        whole = taken_shares(tracking, NAME)
    finally:
        event.remove(Engine, "before_cursor_execute", between)
    assert len(written) == 3 and not page[-1].tags  # what MLflow tells by itself
    assert whole == claims
