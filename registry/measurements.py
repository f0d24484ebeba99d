"""Measurements: what was read of an adapter beside its gate, kept in MLflow under the digest of its files."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from registry.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

MEASUREMENTS = "graftline.measurements"  # the experiment whose runs hold them
FILES_TAG, KIND_TAG, SUBJECT_TAG = "graftline.files", "graftline.measured", "graftline.subject"
Kind = Literal["evaluation", "traces"]
_SENT = re.compile(r"[^\w\-. :/]")  # what the name of a metric may not hold


@dataclass(frozen=True)
class Measured:
    run_id: str
    document: Mapping[str, Any]


def record_measured(
    tracking: Tracking,
    manifest_sha256: str,
    subject: str,
    kind: Kind,
    document: Mapping[str, Any],
    metrics: Mapping[str, float | None] | None = None,
) -> str:
    """The id of the new run. The document is kept for the files that have this manifest, whatever they are called."""
    tags = {FILES_TAG: manifest_sha256, KIND_TAG: kind, SUBJECT_TAG: subject}
    run_id = tracking.start_run(MEASUREMENTS, f"{kind} {subject}", tags=tags)
    tracking.log_text(run_id, json.dumps(document), _file(kind))
    known = {name: value for name, value in (metrics or {}).items() if value is not None and math.isfinite(value)}
    if known:
        tracking.log_metrics(run_id, {_SENT.sub("_", name): value for name, value in known.items()})
    tracking.end_run(run_id)
    return run_id


def recorded_measured(tracking: Tracking, manifest_sha256: str, kind: Kind) -> list[Measured]:
    """Newest first; a run that was cut off, or whose document is gone, is none."""
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        experiment = client.get_experiment_by_name(MEASUREMENTS)
        if experiment is None:
            return []
        wanted = f"tags.`{FILES_TAG}` = '{manifest_sha256}' and tags.`{KIND_TAG}` = '{kind}' and attributes.status = 'FINISHED'"
        runs: list[RunInfo] = []
        token: str | None = None
        while True:
            page = client.search_runs([experiment.experiment_id], wanted, page_token=token)
            runs.extend(run.info for run in page)
            token = page.token or None
            if token is None:
                break
        found = []
        for info in sorted(runs, key=lambda info: (info.start_time, info.run_id), reverse=True):
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    text = Path(client.download_artifacts(info.run_id, _file(kind), scratch)).read_text(encoding="utf-8")
                    found.append(Measured(info.run_id, json.loads(text)))
                except (OSError, ValueError, MlflowException):
                    continue
    return found


def _file(kind: Kind) -> str:
    return f"{kind}.json"
