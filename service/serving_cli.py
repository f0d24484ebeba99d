"""The commands that serve: options and help only, as in service.cli."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from service.options import Home, TrackingUri

serving_app = typer.Typer()


@serving_app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: $GRAFTLINE_HOST, else 127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on [default: $GRAFTLINE_PORT, else 3000].", min=1, max=65535)
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Let everybody in who reaches the address, though no key was made.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone to serve [default: $GRAFTLINE_BACKBONE, else smollm2-135m-reasoner].")
    ] = None,
    engine: Annotated[
        Literal["torch", "vllm"] | None,
        typer.Option(help="torch, or vllm where it is installed [default: $GRAFTLINE_ENGINE, else torch]."),
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve the backbone and every champion over HTTP in the OpenAI shape; promotions are picked up while it runs."""
    from service.commands.serve import serve as run

    raise typer.Exit(run(host, port, backbone, engine, home, tracking_uri, is_open))


@serving_app.command()
def build(
    backbone: Annotated[str | None, typer.Option(help="Backbone to include [default: as `graftline serve`].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Build a Bento that runs from its own files: the backbone and every champion inside, no registry needed."""
    from service.commands.serve import build as run

    run(backbone, home, tracking_uri)
