"""`graftline report`: a study or a release on one page, from what is stored; what is not stored can be measured first."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import RegistryError
from registry.home import home_directory
from registry.runs import run_found, run_link, ui_command
from registry.tracking import Tracking

if TYPE_CHECKING:
    from service.report.gather import Gathered
    from service.report.page import Store

REPORTS = "graftline.reports"  # the experiment of reports on what no run of the store has fitted
FOLDER = "report"  # among a run's artifacts


def report(
    asked: str,
    out: Path | None,
    want_study: bool,
    measure: bool,
    examples: int | None,
    items: int,
    home: Path | None,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """`examples`: traces a task to write, where so many are not stored; `items`: a task, of what is measured."""
    from adapters.whole_file import write_whole
    from service.report.gather import Place, gather, subject_named
    from service.report.page import page

    place_at = home_directory(home)
    place = Place(place_at, Tracking.at(place_at, tracking_uri), storage)
    subject = subject_named(place, asked, want_study)
    if subject.also_study:
        print(f"{asked} is a study too: --study reports on that", file=sys.stderr)
    gathered = gather(place, subject)
    if measure or examples:
        from service.commands.report_measured import measure_missing

        if measure_missing(gathered, place, examples or (2 if measure else 0), measure, items, tracking_uri):
            gathered = gather(place, subject)
    material = gathered.material
    made = page(material, store_of(place.tracking, material.run_ids()))
    file = out if out is not None else Path(f"{_file_name(material.subject)}-report.html")
    write_whole(file, made.html)
    run_id = _logged(gathered, subject.study is not None, place.tracking, file)
    if as_json:
        print(json.dumps({"subject": material.subject, "file": str(file), "run_id": run_id, "missing": list(made.missing)}))
        return
    print(f"{file}: {material.subject}" + (f"; also in MLflow, run {run_id}, {FOLDER}/" if run_id else ""))
    if made.missing:
        print(f"not measured: {'; '.join(made.missing)} (the page names the commands; --measure runs what needs no fit)")


def store_of(tracking: Tracking, run_ids: Sequence[str]) -> Store:
    from service.report.page import Store

    if (command := ui_command(tracking)) is not None:
        return Store({}, command)
    links = {}
    for run_id in run_ids:
        if (found := run_found(tracking, run_id)) is not None and (link := run_link(tracking, found)) is not None:
            links[run_id] = link
    return Store(links, None)


def _file_name(subject: str) -> str:
    """NAME@3 as NAME-3; what a file may not be called by is left out."""
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in subject).lstrip(".-")
    return kept[:80] or "subject"


def _logged(gathered: Gathered, of_study: bool, tracking: Tracking, file: Path) -> str | None:
    """The run that the page was logged with; None where the store refused it, or there is none."""
    material = gathered.material
    if tracking.is_missing:
        return None
    owner = material.study if of_study else material.release
    own = owner.run_id if owner else None
    try:
        if own is None or run_found(tracking, own) is None:
            own = tracking.start_run(REPORTS, f"report {material.subject}")
            tracking.end_run(own)
        tracking.log_artifact(own, file, FOLDER)
    except RegistryError as error:
        print(f"the page is not logged: {error}", file=sys.stderr)
        return None
    return own
