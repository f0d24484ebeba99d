"""The commands for sparse autoencoders: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, layer_of

sae_app = typer.Typer(no_args_is_help=True, help="Sparse autoencoders of one layer: train, score and steer by their features.")

Words = Annotated[
    str | None,
    typer.Option(
        help="Groups of words, such as 'so; because, since': groups between semicolons, the forms of one between commas "
        "[default: those of ReasonScore's paper]."
    ),
]
Saved = Annotated[Path, typer.Argument(metavar="SAE", help="A directory that `graftline sae train` wrote.")]


@sae_app.command()
def train(
    out: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the autoencoder goes; it must not be there yet.")],
    task: Annotated[list[str] | None, typer.Option(help="Whose questions are asked [default: the seven families].")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Whose examples are read as text [default: icd10, text].")] = None,
    places: Annotated[int | None, typer.Option(help="Tokens whose states are harvested [default: 200000].", min=1)] = None,
    layer: Annotated[float | None, typer.Option(help="An index, or a share of the depth [default: 0.6].")] = None,
    width: Annotated[int | None, typer.Option(help="Features for each number of a state [default: 8].", min=1)] = None,
    k: Annotated[int | None, typer.Option("--k", help="Features that are active at a place [default: 32].", min=1)] = None,
    passes: Annotated[int | None, typer.Option(help="Passes of the fit over the places [default: 4].", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Places a step [default: 1024].", min=2)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the fit; the next one is fitted too.")] = None,
    words: Words = None,
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "smollm2-135m-reasoner",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Harvest states, fit a sparse autoencoder twice and gate it. Stopped, it goes on. Exit code 1: a gate is not passed."""
    from service.commands.sae import train as run

    harvest: dict[str, object] = {"tasks": task and tuple(task), "texts": text and tuple(text), "places": places}
    harvest |= {"layer": None if layer is None else layer_of(layer)}
    fit: dict[str, object] = {"width": width, "k": k, "passes": passes, "batch_size": batch_size, "seed": seed}
    raise typer.Exit(run(out, harvest, fit, words, backbone, home, as_json))


@sae_app.command()
def score(
    sae: Saved,
    words: Words = None,
    top: Annotated[int, typer.Option(help="Features to list.", min=1)] = 10,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was trained on].")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the features that are active where chains reason in words (ReasonScore); refused where the words hardly occur."""
    from service.commands.sae import score as run

    run(sae, words, top, backbone, home, as_json)


@sae_app.command()
def steer(
    sae: Saved,
    out: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the adapter goes; it must not be there yet.")],
    feature: Annotated[int | None, typer.Option(help="The feature [default: the best by ReasonScore].", min=0)] = None,
    form: Annotated[str, typer.Option(help="column: added everywhere; clamp: held at a level.")] = "column",
    strength: Annotated[float, typer.Option(help="In largest activations of the feature.")] = 1.0,
    items: Annotated[int, typer.Option(help="Questions of the search split to compare on.", min=8)] = 24,
    words: Words = None,
    domain: Annotated[
        str | None, typer.Option(help="The task that it is published for [default: the first whose chains it was trained on].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the recipe in its manifest [default: TASK-feature].")] = None,
    eps: Annotated[float, typer.Option(help="The mean KL to the backbone that its gate allows, nats a token.")] = 0.03,
    despite_gates: Annotated[bool, typer.Option("--despite-gates", help="Also where a gate is not passed.")] = False,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was trained on].")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a steering adapter of one feature, compared with a difference of means and random columns of the same length."""
    from service.commands.sae import steer as run

    run(sae, out, feature, form, strength, items, words, domain, name, eps, despite_gates, backbone, home, as_json)
