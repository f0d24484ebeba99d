"""Versions of a registered model, read in pages that nobody tears who writes meanwhile.

MLflow pages by how many rows to pass over, last edited first, and reads the tags of a page in a second query. A version that is
deleted meanwhile moves another one over the edge of a page, and one that is edited goes to the front: nobody reads them. On
PostgreSQL new ones take the place of a page's last, which then come without their tags. So a page here begins after the last
number that was read, the lowest first: what is new comes behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PAGE = 200


def versions_after(client: MlflowClient, name: str, after: int = 0) -> list[ModelVersion]:
    """Those with a number above `after`, by number; empty where there is no such model."""
    found: list[ModelVersion] = []
    while True:
        asked = f"name='{name}' and version_number > {after}"
        page = client.search_model_versions(asked, max_results=PAGE, order_by=["version_number ASC"])
        found.extend(_whole(client, page))
        if not page.token:
            return found
        after = int(page[-1].version)


def newest_versions(client: MlflowClient, name: str, count: int = 1) -> list[ModelVersion]:
    """At most `count`, the newest first; empty while there is none."""
    found = client.search_model_versions(f"name='{name}'", max_results=count, order_by=["version_number DESC"])
    return list(_whole(client, found))


def _whole(client: MlflowClient, versions: Iterable[ModelVersion]) -> Iterator[ModelVersion]:
    """The versions with their tags: one without any is asked for by itself, and left out where it is gone."""
    from mlflow.exceptions import MlflowException

    for version in versions:
        if version.tags:
            yield version
            continue
        try:
            yield client.get_model_version(version.name, str(version.version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
