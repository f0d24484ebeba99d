"""The commands that go on from a release: options and help only, as in service.cli."""

from __future__ import annotations

from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri

continuing_app = typer.Typer()


@continuing_app.command()
def reproduce(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="NAME, NAME@VERSION or NAME@ALIAS.")],
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Fit a release again from its manifest alone: identical, equivalent or different. Exit code 1: different."""
    from service.commands.reproduce import reproduce as run

    raise typer.Exit(run(release, home, tracking_uri, as_json))
