"""The commands for routers: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri, seconds

router_app = typer.Typer(no_args_is_help=True, help="Pick the adapter by the prompt: what answers model=auto.")


@router_app.command()
def fit(
    releases: Annotated[
        list[str], typer.Argument(metavar="RELEASE...", help="What is chosen among: NAME (its champion) or NAME@VERSION.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIRECTORY", help="Where it goes; it must not be there yet.")],
    items: Annotated[int | None, typer.Option(help="Questions a class and split [default: 240].", min=20)] = None,
    max_astray: Annotated[
        float | None, typer.Option(help="Share of the backbone's prompts that may go to an adapter [default: 0.03].")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts of your own that the backbone should answer, one a line.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the questions [default: 0].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Fit a router between the backbone and these releases; tells how often it is right on prompts it has not seen."""
    from service.commands.router import fit as run

    run(releases, out, items, max_astray, seed, keep, home, tracking_uri, as_json)


@router_app.command()
def evaluate(
    router: Annotated[str, typer.Argument(metavar="ROUTER", help="A directory, or NAME@VERSION of a published router.")],
    items: Annotated[int, typer.Option(help="Of each task.", min=4)] = 60,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Domains and protected families through the router, against the backbone and against asking by name."""
    from service.commands.router import evaluate as run

    run(router, items, home, tracking_uri, as_json)


@router_app.command()
def promote(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="NAME@VERSION or NAME@ALIAS of a published router.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger; an override needs one.")] = "",
    override: Annotated[bool, typer.Option("--override", help="Promote whatever the gate says, with a reason.")] = False,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Seconds for the gate, instead of the policy's.", callback=seconds)
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(help="A TOML file with a stricter policy for this gate; with --reason, a laxer one for the name."),
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Gate a router: routed domains gain, lose little against asking by name, and the protected families are kept."""
    from service.commands.router import promote as run

    raise typer.Exit(run(release, reason, override, time_budget_s, gate, home, tracking_uri, as_json))
