"""Verdicts: the gate's word on a version and the evidence for it, kept with the version, promoted or not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from registry.errors import UnreadableReport
from registry.evidence import Evidence, Share, Start
from registry.gate_report import GateReport
from registry.names import ReleaseName, unknown_release
from registry.release import MANIFEST_TAG
from registry.tracking import Tracking
from registry.versions import versions_after

VERDICT_TAG, REPORT_TAG = "graftline.gate.verdict", "graftline.gate.report"
START_TAG, EVIDENCE_TAG = "graftline.gate.start", "graftline.gate.evidence"
_CLAIM_TAG = "graftline.gate.claim."  # and the seed: two gates of one version leave two of them, and overwrite none
GATES = "graftline.gates"  # the experiment whose runs hold the evidence
_FILE = "evidence.json"
_ATTEMPTS = 5


def record_verdict(tracking: Tracking, release: ReleaseName, report: GateReport) -> None:
    """Keeps the latest report as tags of the version, and its evidence as a run's artifact that a tag points to."""
    if report.subject != str(release):
        raise ValueError(f"A verdict is kept with the release it is about, but {report.subject} is not {release}.")
    if report.evidence is not None:
        _record_evidence(tracking, release, report.evidence)
    set_version_tags(tracking, release, {REPORT_TAG: report.canonical(), VERDICT_TAG: report.verdict})


def record_start(tracking: Tracking, release: ReleaseName, start: Start) -> None:
    """Before the first item is drawn: a gate that is cut off counts as begun."""
    set_version_tags(
        tracking, release, {f"{_CLAIM_TAG}{start.seed}": start.model_dump_json(), START_TAG: start.model_dump_json()}
    )


def withdraw_start(tracking: Tracking, release: ReleaseName, start: Start) -> None:
    """Of a gate that has drawn nothing and takes another share."""
    with tracking.client() as client:
        client.delete_model_version_tag(release.name, str(release.version), f"{_CLAIM_TAG}{start.seed}")


def recorded_evidence(tracking: Tracking, release: ReleaseName) -> Evidence | None:
    """What the latest gate of the same files drew; without its items where they cannot be read: the start draws them again.

    None when no gate of these files was begun, under this version or another one, of whatever name.
    """
    from mlflow.exceptions import MlflowException

    tags = _tags_with(START_TAG, tracking, release)
    if tags is None:
        return None
    start = Start.model_validate_json(tags[START_TAG])
    if EVIDENCE_TAG in tags:
        pointer = json.loads(tags[EVIDENCE_TAG])
        with tempfile.TemporaryDirectory() as scratch, tracking.client() as client:
            try:
                evidence = Evidence.from_json(Path(client.download_artifacts(pointer["run_id"], _FILE, scratch)).read_text())
            except (OSError, ValueError, MlflowException):
                return Evidence(start)
        if evidence.start == start and evidence.digest() == pointer["sha256"]:
            return evidence
    return Evidence(start)


def taken_shares(tracking: Tracking, name: str) -> frozenset[Share]:
    """What the gates of all versions of the name took of its alpha, undecided and cut off ones included."""
    with tracking.client() as client:
        tags = [tag for version in versions_after(client, name) for tag in version.tags.items()]
    found = [value for key, value in tags if key == START_TAG or key.startswith(_CLAIM_TAG)]
    return frozenset(share for start in found for share in Start.model_validate_json(start).shares)


def recorded_report(tracking: Tracking, release: ReleaseName) -> GateReport | None:
    """The latest report; None when the version was never gated."""
    tags = version_tags(tracking, release)
    return _report(tags[REPORT_TAG], release) if REPORT_TAG in tags else None


def report_of_same_files(tracking: Tracking, release: ReleaseName) -> GateReport | None:
    """The latest report on these files, be it under another version or name: to publish them again is no second chance."""
    tags = _tags_with(REPORT_TAG, tracking, release)
    return _report(tags[REPORT_TAG], release) if tags is not None else None


def _report(text: str, release: ReleaseName) -> GateReport:
    try:
        return GateReport.model_validate_json(text)
    except ValidationError as error:
        fault = ".".join(map(str, error.errors()[0]["loc"]))
        raise UnreadableReport(
            f"The gate report of {release} was written by another version of Graftline (it differs in {fault}). Read it with "
            "that version, or publish the release in a new home."
        ) from error


def _record_evidence(tracking: Tracking, release: ReleaseName, evidence: Evidence) -> None:
    stored, digest = version_tags(tracking, release).get(EVIDENCE_TAG), evidence.digest()
    if stored is not None and json.loads(stored)["sha256"] == digest:
        return
    run_id = tracking.start_run(GATES, f"gate {release}", tags={"graftline.release": str(release)})
    tracking.log_text(run_id, evidence.to_json(), _FILE)
    tracking.end_run(run_id)
    pointer = json.dumps({"run_id": run_id, "sha256": digest})
    set_version_tags(tracking, release, {START_TAG: evidence.start.model_dump_json(), EVIDENCE_TAG: pointer})


def version_tags(tracking: Tracking, release: ReleaseName) -> Mapping[str, str]:
    """UnknownRelease where there is no such version."""
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        try:
            return dict(client.get_model_version(release.name, str(release.version)).tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise unknown_release(tracking, str(release)) from error


def manifest_of(tracking: Tracking, release: ReleaseName) -> str | None:
    """SHA-256 of the manifest of the version's files; None where it was registered by other means."""
    return version_tags(tracking, release).get(MANIFEST_TAG)


def _tags_with(tag: str, tracking: Tracking, release: ReleaseName) -> Mapping[str, str] | None:
    """The tags of the version if `tag` is among them, else of the newest other version of the same files, its own name first."""
    own = version_tags(tracking, release)
    if tag in own or MANIFEST_TAG not in own:
        return own if tag in own else None
    same = f"tags.`{MANIFEST_TAG}`='{own[MANIFEST_TAG]}'"
    with tracking.client() as client:
        found = [version for version in client.search_model_versions(same) if tag in version.tags]
    found.sort(key=lambda version: (version.name == release.name, version.creation_timestamp, int(version.version)))
    return found[-1].tags if found else None


def set_version_tags(tracking: Tracking, release: ReleaseName, tags: Mapping[str, str]) -> None:
    """UnknownRelease where there is no such version."""
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        for attempt in range(_ATTEMPTS):
            try:
                for name, value in tags.items():
                    client.set_model_version_tag(release.name, str(release.version), name, value)
                return
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise unknown_release(tracking, str(release)) from error
                # Two first writers of one tag clash in the store; the second try finds the row and updates it.
                if attempt == _ATTEMPTS - 1:
                    raise
