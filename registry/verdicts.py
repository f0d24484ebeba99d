"""Verdicts: the gate's word on a version, kept with the version, promoted or not."""

from __future__ import annotations

from registry.gate_report import GateReport
from registry.names import ReleaseName, unknown_release
from registry.tracking import Tracking

VERDICT_TAG, REPORT_TAG = "graftline.gate.verdict", "graftline.gate.report"
_ATTEMPTS = 5


def record_verdict(tracking: Tracking, release: ReleaseName, report: GateReport) -> None:
    """Keeps the latest report as tags of the version."""
    from mlflow.exceptions import MlflowException

    if report.subject != str(release):
        raise ValueError(f"A verdict is kept with the release it is about, but {report.subject} is not {release}.")
    with tracking.client() as client:
        for attempt in range(_ATTEMPTS):
            try:
                client.set_model_version_tag(release.name, str(release.version), REPORT_TAG, report.canonical())
                client.set_model_version_tag(release.name, str(release.version), VERDICT_TAG, report.verdict)
                return
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise unknown_release(tracking, str(release)) from error
                # Two first writers of one tag clash in the store; the second try finds the row and updates it.
                if attempt == _ATTEMPTS - 1:
                    raise


def recorded_report(tracking: Tracking, release: ReleaseName) -> GateReport | None:
    """The latest report; None when the version was never gated."""
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        try:
            tags = client.get_model_version(release.name, str(release.version)).tags
        except MlflowException as error:
            raise unknown_release(tracking, str(release)) from error
    return GateReport.model_validate_json(tags[REPORT_TAG]) if REPORT_TAG in tags else None
