"""Runs that say RUNNING although the process that began them is gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil

from registry.tracking import PROCESS_TAG, Tracking

if TYPE_CHECKING:
    from mlflow.entities import Run

_PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class StaleRun:
    run_id: str
    name: str
    since: str  # UTC, ISO 8601
    reason: str  # why nobody goes on with it


def stale_runs(tracking: Tracking, after_h: float) -> tuple[StaleRun, ...]:
    """Of this machine: those whose process has ended. Of others, or of unknown processes: those begun `after_h` hours ago.

    A run goes on as long as one below it does, since any process may go on with a study.
    """
    running = _running(tracking)
    reasons = {run.info.run_id: _reason(run, after_h) for run in running}
    alive = {run.info.run_id for run in running if reasons[run.info.run_id] is None}
    held = {run.data.tags[_PARENT_TAG] for run in running if run.info.run_id in alive and _PARENT_TAG in run.data.tags}
    found = []
    for run in running:
        reason = reasons[run.info.run_id]
        if reason is not None and run.info.run_id not in held:
            since = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")
            found.append(StaleRun(run.info.run_id, str(run.info.run_name), since, reason))
    return tuple(found)


def _running(tracking: Tracking) -> list[Run]:
    found: list[Run] = []
    with tracking.client() as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        token: str | None = None
        while experiments:
            page = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=500, page_token=token)
            found.extend(page)
            token = page.token or None
            if token is None:
                break
    return found


def _reason(run: Run, after_h: float) -> str | None:
    """None while somebody may go on with it."""
    host, _, process = run.data.tags.get(PROCESS_TAG, "").rpartition("/")
    pid, _, began = process.partition("@")
    if host == socket.gethostname() and pid.isdigit() and began.isdigit():
        return None if _runs(int(pid), int(began)) else f"process {pid} of this machine, which began it, has ended"
    hours = (time.time() * 1000 - run.info.start_time) / 3_600_000
    where = f"on {host}" if host else "by nobody knows whom"
    return f"it was begun {where} {hours:.0f} hours ago" if hours > after_h else None


def _runs(pid: int, began: int) -> bool:
    """Whether the process is still the one that had the number then."""
    try:
        process = psutil.Process(pid)
        return int(process.create_time()) == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def end_stale(tracking: Tracking, runs: Iterable[StaleRun]) -> None:
    """Marks them KILLED; what they logged stays."""
    for run in runs:
        tracking.end_run(run.run_id, "KILLED")
