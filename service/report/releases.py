"""A release as a report tells it: its manifest, the gate's report on it, and whether it is served."""

from __future__ import annotations

import json

from registry.gate_report import GateReport
from registry.names import ReleaseName
from registry.release import Release, load_release
from registry.status import NameStatus, name_status
from registry.tracking import Tracking
from registry.verdicts import EVIDENCE_TAG, recorded_report, report_of_same_files, version_tags
from service.report.material import ReleaseMaterial


def release_material(tracking: Tracking, named: ReleaseName, trial: int | None) -> tuple[ReleaseMaterial, Release]:
    """UnknownRelease where it is not there. `trial`: of the study that fitted it."""
    release = load_release(tracking, named.name, named.version)
    status, pointer = name_status(tracking, named.name), version_tags(tracking, named).get(EVIDENCE_TAG)
    material = ReleaseMaterial(
        named.name,
        named.version,
        release.manifest,
        release.run_id,
        trial,
        gate_of(tracking, named),
        None if pointer is None else str(json.loads(pointer)["run_id"]),
        _standing(status, named.version),
        status.warnings,
    )
    return material, release


def fitting_run(tracking: Tracking, named: ReleaseName) -> str | None:
    """The run that fitted it; None where it was published from a bare directory, or imported."""
    with tracking.client() as client:
        return client.get_model_version(named.name, str(named.version)).run_id or None


def gate_of(tracking: Tracking, named: ReleaseName) -> GateReport | None:
    """On this version, else on the same files under another one: verdicts follow the files."""
    return recorded_report(tracking, named) or report_of_same_files(tracking, named)


def _standing(status: NameStatus, version: int) -> str:
    if status.champion != version:
        return "not served: " + (f"{status.name}@{status.champion} is the champion" if status.champion else "no champion yet")
    made = next(entry for entry in reversed(status.history) if entry.version == version)
    why = f": {made.reason}" if made.reason else ""
    how = {"promote": "promoted", "override": "promoted past its gate", "rollback": "brought back"}.get(made.kind, made.kind)
    return f"champion, {how} by {made.actor}, {made.created}{why}"
