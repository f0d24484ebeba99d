"""What a report lacks and a model can tell without a fit: the measures that the page shows, and example traces."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from service.commands.evaluate import evaluated
from service.commands.kept import keep
from service.commands.subject import LOADED, Subject, load_subject
from service.report.errors import NothingToMeasure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.report.gather import Gathered, Place
    from service.report.material import Material

SHOWN = ("information_gain_external", "information_gain_self", "faithfulness", "budget", "brier_score")


def measure_missing(gathered: Gathered, place: Place, examples: int, measure: bool, items: int, tracking_uri: str | None) -> bool:
    """Whether anything was measured: what is stored is not read again, and no backbone is loaded for it."""
    material = gathered.material
    wanted = unread(material) if measure else []
    num_stored = traces_stored(material)
    if not wanted and examples <= num_stored:
        return False
    if material.measured_as is None:
        raise NothingToMeasure(
            f"What is measured is an adapter, but {material.subject} has none here: it is a router, no trial is finished, or "
            "the weights were removed or are elsewhere. Report on a release with one, or leave out --measure and --examples."
        )
    subject = load_subject(material.measured_as, None, None, place.home, tracking_uri)
    # A study's trial is told by its place in the study, not by its directory.
    subject = replace(subject, name=material.release.full_name if material.release else f"{material.subject}, chosen trial")
    if wanted:
        found, left_out = evaluated(subject, items, wanted)
        keep(subject, found, left_out, items, place.tracking)
    if examples > num_stored:
        _write(subject, examples, place)
    return True


def unread(material: Material) -> list[str]:
    """The measures of the page that no stored evaluation has."""
    known = {one.measure for one in material.evaluated}
    return [name for name in SHOWN if name not in known]


def traces_stored(material: Material) -> int:
    """Examples a task."""
    if material.traces is None:
        return 0
    return max((len(task["examples"]) for task in material.traces.document["tasks"]), default=0)


def _write(subject: Subject, count: int, place: Place) -> None:
    from evaluation.example_traces import example_traces, traces_document
    from evaluation.retention import is_written
    from evaluation.task import Task
    from registry.manifest import MANIFEST, file_digest
    from registry.measurements import record_measured

    measurable, _ = subject.measurable()
    tasks: Sequence[tuple[Task, str]] = [
        (subject.domain, "domain"),
        *((task, "protected") for task in measurable if is_written(task)),
    ]
    by_task = []
    for number, (task, role) in enumerate(tasks, start=1):
        print(f"writing example traces of {task.name} ({number} of {len(tasks)})", file=sys.stderr)
        found = example_traces(subject.engine, subject.backbone, LOADED, task, task.examples("select", count))
        by_task.append((task.name, role, found))
    document = traces_document(subject.name, subject.backbone.name, by_task)
    record_measured(place.tracking, file_digest(subject.directory / MANIFEST), subject.name, "traces", document)
