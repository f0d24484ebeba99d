"""The commands that go on from a release: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import TRIALS, Home, Json, TrackingUri, seconds

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


@continuing_app.command("continue")
def continue_(
    domain: Annotated[
        str, typer.Argument(metavar="DOMAIN", help="A registered model with a champion, or the recipe (TOML) of one.")
    ],
    data: Annotated[Path, typer.Option(help="New rows (JSONL, CSV, Parquet) in the columns of the domain's task file.")],
    trials: Annotated[int, typer.Option(help="Of each arm.", min=1)] = TRIALS,
    least_rows: Annotated[int, typer.Option(help="New rows below which nothing is fitted.", min=8)] = 40,
    always: Annotated[bool, typer.Option("--always", help="Fit also where the champion is not shown to do worse.")] = False,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Seconds for the gate, instead of the policy's.", callback=seconds)
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Check new rows, fit from the champion where there is something to learn, gate it, and publish a candidate.

    Exit codes: 0 published, or nothing to do; 3 refused; 2 bad data; 75 try again later.
    """
    from service.commands.continued import Asked
    from service.commands.continued import continued as run

    raise typer.Exit(run(domain, Asked(data, trials, always, least_rows, time_budget_s), home, tracking_uri, as_json))


@continuing_app.command()
def watch(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where files of new rows arrive.", file_okay=False)],
    domain: Annotated[str, typer.Option(help="A registered model with a champion.")],
    poll_s: Annotated[
        float, typer.Option(help="Seconds between two looks; a file is whole once two agree.", callback=seconds)
    ] = 15.0,
    once: Annotated[
        bool, typer.Option("--once", help="End when nothing is left to take in; 75 where something must wait.")
    ] = False,
    trials: Annotated[int, typer.Option(help="Of each arm.", min=1)] = TRIALS,
    least_rows: Annotated[int, typer.Option(help="New rows below which nothing is fitted.", min=8)] = 40,
    always: Annotated[bool, typer.Option("--always", help="Fit also where the champion is not shown to do worse.")] = False,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Run `graftline continue` on every whole file that arrives, one at a time; SIGTERM ends it in order."""
    from service.commands.watch import watch as run

    options = ["--trials", str(trials), "--least-rows", str(least_rows), *(["--always"] if always else [])]
    raise typer.Exit(run(directory, domain, poll_s, once, options, home, tracking_uri, as_json))
