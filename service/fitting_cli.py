"""The command that fits without a search: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri


def fit(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; its own values are fitted, nothing is searched.")],
    out: Annotated[Path, typer.Option(help="Where the adapter goes: a directory that is not there yet, or empty.")],
    processes: Annotated[
        int | None, typer.Option(help="Processes that share every batch [default: the recipe's fit.processes].", min=1)
    ] = None,
    accelerate: Annotated[
        Path | None,
        typer.Option(
            help="A config file of Accelerate, for a sharded backbone [default: the recipe's].", exists=True, dir_okay=False
        ),
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Fit a recipe's own values into a directory, alone or in several processes. `accelerate launch` may start it, too."""
    from service.commands.fit import fit as run

    run(recipe, out, processes, accelerate, home, tracking_uri, as_json)
