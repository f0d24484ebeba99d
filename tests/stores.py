"""Registries of tests: MLflow makes the tables of a store by dozens of migrations, here once a process and not for every test."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from registry.tracking import Tracking


def store_at(home: Path) -> Tracking:
    """An empty one, of a home that has none yet."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "mlflow.db").write_bytes(_empty())
    return Tracking.at(home)


@cache
def _empty() -> bytes:
    from mlflow.store.db import utils

    # Asked for whenever a store is opened: alembic then loads all migrations again.
    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as home:
        Tracking.at(Path(home)).create()
        return (Path(home) / "mlflow.db").read_bytes()
