"""`graftline status`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from registry.database_url import shown
from registry.home import home_directory
from registry.printable import printable
from registry.status import Status
from registry.status import status as registry_status
from registry.tracking import Tracking


def status(home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    tracking = Tracking.at(home_directory(home), tracking_uri)
    missing = tracking.is_missing
    found = Status(uri=shown(tracking.uri), names=()) if missing else registry_status(tracking.create())
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    console = Console(markup=False)

    def say(line: str) -> None:
        console.print(printable(line))

    if missing:
        console.print(f"there is no registry in {found.uri} yet: check --home, or start with: graftline tune RECIPE.toml")
    elif not found.names:
        console.print(f"nothing is registered yet in {found.uri}; start with: graftline tune RECIPE.toml")
    for name in found.names:
        champion = f"champion {name.name}@{name.champion}" if name.champion else "no champion yet"
        table = Table(title=printable(f"{name.name}: {champion}"), title_justify="left")
        for heading in ("version", "gate", "published", "aliases", ""):
            table.add_column(heading)
        for version in name.candidates:
            mark = "champion" if version.champion else ("overridden" if version.overridden else "")
            cells = (str(version.version), version.verdict, version.created, ", ".join(version.aliases), mark)
            table.add_row(*map(printable, cells))
        console.print(table)
        for version in name.candidates:
            if version.origin is not None:
                say(f"  {name.name}@{version.version} is {version.origin}")
        if name.canary is not None:
            say(f"  {name.canary}")
        for entry in name.history:
            say(
                f"  {entry.number}. {entry.kind} @{entry.version} ({entry.verdict}) by {entry.actor}, {entry.created}: "
                f"{entry.reason or '-'}"
            )
        for proposal in name.proposals:
            say(f"  ? {proposal.sentence}")
        for warning in (*((name.drift,) if name.drift else ()), *name.warnings):
            say(f"  ! {warning}")
