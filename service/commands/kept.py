"""What an evaluation leaves in MLflow, for reports: every row, with what each item was made of, under the adapter's files."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.errors import RegistryError
from registry.manifest import MANIFEST, file_digest
from registry.measurements import record_measured
from registry.tracking import Tracking

if TYPE_CHECKING:
    from evaluation.evaluate import Evaluation, Row
    from evaluation.measure import Readings
    from service.commands.subject import Subject


def keep(subject: Subject, found: Evaluation, left_out: Mapping[str, str], items: int, tracking: Tracking) -> str | None:
    """The run's id; None of plain adapter files, where there is no store, and where the store refused, which is told."""
    if subject.manifest is None or tracking.is_missing:
        return None
    document = {
        "subject": subject.name,
        "backbone": subject.backbone.name,
        "fitted_on": _fitted_on(subject),
        "items": items,
        **found.as_dict(),
        "rows": [row.as_dict() | {"parts": _parts(row)} for row in found.rows],
        "not_measurable": dict(left_out),
    }
    try:
        digest = file_digest(subject.directory / MANIFEST)
        return record_measured(tracking, digest, subject.name, "evaluation", document, _metrics(found))
    except RegistryError as error:
        print(f"the evaluation is not kept in MLflow: {error}", file=sys.stderr)
        return None


def _fitted_on(subject: Subject) -> str:
    from evaluation.tasks import task_named

    assert subject.manifest is not None
    named = subject.manifest.recipe.get("domain")
    return subject.domain.name if named is None else task_named(str(named)).name


def _metrics(found: Evaluation) -> dict[str, float | None]:
    """The change of every row, and how sure it is."""
    told: dict[str, float | None] = {}
    for row in found.rows:
        if not row.not_measurable:
            name = f"{row.planned.task.name}/{row.planned.measure.name}"
            told |= {f"change/{name}": row.change.mean, f"low/{name}": row.change.low, f"high/{name}": row.change.high}
    return told


def _parts(row: Row) -> dict[str, dict[str, list[float | None]]]:
    """Item by item, in the order of the row's items; what stands only for a summary is left out."""

    def known(readings: Readings) -> dict[str, list[float | None]]:
        return {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in readings.parts.items()
            if not name.startswith("_")
        }

    sides: dict[str, Any] = {"base": known(row.base), "adapted": known(row.adapted)}
    return sides
