"""The command that makes a release of a decoding policy alone: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Json

policy_app = typer.Typer()


@policy_app.command()
def decoding(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: name, backbone, domain and what the gate protects; no fit.")],
    policy: Annotated[Path, typer.Argument(help="A TOML file with the fields of a decoding policy; see docs/decoding.md.")],
    out: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the release goes; it must not be there yet.")],
    as_json: Json = False,
) -> None:
    """Make a release of the backbone under a decoding policy, without an adapter: ready to publish, gated like any other."""
    from service.commands.decoding import decoding as run

    run(recipe, policy, out, as_json)
