"""Runs looked up by others: their tags, their children, a file of theirs, where the MLflow UI shows them, what was published."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from registry.database_url import shown
from registry.errors import StoreRefused
from registry.names import LEDGER_SUFFIX, ReleaseName
from registry.tracking import Tracking


@dataclass(frozen=True)
class RunFound:
    id: str
    experiment_id: str
    tags: Mapping[str, str]


def run_found(tracking: Tracking, run_id: str) -> RunFound | None:
    """None where the store has no such run: that of an imported release is in another one."""
    try:
        with tracking.client() as client:
            run = client.get_run(run_id)
    except StoreRefused:
        return None
    return RunFound(run_id, str(run.info.experiment_id), dict(run.data.tags))


def children_of(tracking: Tracking, parent: RunFound) -> list[RunFound]:
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    found: list[RunFound] = []
    with tracking.client() as client:
        token: str | None = None
        while True:
            wanted = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.id}'"
            page = client.search_runs([parent.experiment_id], wanted, page_token=token)
            found += [RunFound(run.info.run_id, str(run.info.experiment_id), dict(run.data.tags)) for run in page]
            token = page.token or None
            if token is None:
                return found


def parent_of(tracking: Tracking, run: RunFound) -> RunFound | None:
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    parent = run.tags.get(MLFLOW_PARENT_RUN_ID)
    return None if parent is None else run_found(tracking, parent)


def document_of(tracking: Tracking, run_id: str, file: str) -> dict[str, Any] | None:
    """A JSON object among the artifacts of a run; None where there is none that can be read."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tracking.client() as client:
                found = json.loads(Path(client.download_artifacts(run_id, file, scratch)).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # StoreRefused is one of these
            return None
    return found if isinstance(found, dict) else None


def published_from(tracking: Tracking, run_ids: Iterable[str]) -> dict[str, ReleaseName]:
    """By run, the newest version that was published from it."""
    found: dict[str, ReleaseName] = {}
    with tracking.client() as client:
        for run_id in run_ids:
            versions = [
                version
                for version in client.search_model_versions(f"run_id='{run_id}'")
                if not version.name.endswith(LEDGER_SUFFIX)
            ]
            if versions:
                newest = max(versions, key=lambda version: (version.creation_timestamp, int(version.version)))
                found[run_id] = ReleaseName(newest.name, int(newest.version))
    return found


def run_link(tracking: Tracking, run: RunFound) -> str | None:
    """Where a server's UI shows the run; None for a store that nobody serves."""
    address = urlsplit(tracking.uri)
    if address.scheme not in ("http", "https"):
        return None
    host = address.netloc.rpartition("@")[2]  # without a password
    place = urlunsplit((address.scheme, host, address.path.rstrip("/"), "", ""))
    return f"{place}/#/experiments/{quote(run.experiment_id)}/runs/{quote(run.id)}"


def ui_command(tracking: Tracking) -> str | None:
    """What shows the runs of a store that nobody serves; None for a server."""
    if urlsplit(tracking.uri).scheme in ("http", "https"):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(shown(tracking.uri))}"
