"""`graftline doctor`: finds what is wrong in the registry, and puts right what can be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from registry.doctor import Finding, examine
from registry.errors import RefusedName
from registry.home import home_directory
from registry.names import checked_name, current_actor, registered_names
from registry.printable import printable
from registry.stale_runs import end_stale, stale_runs
from registry.tracking import Tracking
from service.audit import AuditLog


def doctor(
    name: str | None,
    repair: bool,
    accept: str | None,
    stale_after_h: float,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """0 where nothing is left open, 1 otherwise. Runs are looked at where no name is given."""
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    if accept is not None and (name is None or not accept.strip()):
        raise RefusedName("What is accepted is of one name, and needs a reason. Run `graftline doctor NAME --accept REASON`.")
    names = [checked_name(name)] if name is not None else registered_names(tracking)
    found = {one: examine(tracking, one, repair=repair, accept=accept) for one in names}
    if name is None:
        found["runs"] = tuple(_of_runs(tracking, stale_after_h, repair))
    changed = [f"{one}: {finding.id}" for one, of in found.items() for finding in of if finding.state == "repaired"]
    if changed or accept is not None:
        with AuditLog(place).by_user("registry.repair", name or "every name", current_actor()) as act:
            act.detail |= {"repaired": list(changed), "accepted": accept}
    if as_json:
        print(json.dumps({one: [asdict(finding) for finding in of] for one, of in found.items()}))
    else:
        _show(found.items())
    return int(any(finding.is_open for of in found.values() for finding in of))


def _of_runs(tracking: Tracking, stale_after_h: float, repair: bool) -> Iterable[Finding]:
    runs = stale_runs(tracking, stale_after_h)
    if repair:
        end_stale(tracking, runs)
    for run in runs:
        yield Finding(
            f"run:{run.run_id}",
            f"Run {run.name!r} ({run.run_id}) says RUNNING since {run.since}, but {run.reason}. `graftline doctor --repair` "
            "marks it KILLED; what it logged stays.",
            repairable=True,
            state="repaired" if repair else "open",
        )


def _show(found: Iterable[tuple[str, tuple[Finding, ...]]]) -> None:
    for name, findings in found:
        if not findings:
            print(f"{printable(name)}: healthy")
        for finding in findings:
            print(printable(f"{name}: {finding.state}: {finding.sentence}"))
