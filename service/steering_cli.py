"""The commands for steering vectors: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Json, layer_of

steering_app = typer.Typer()


@steering_app.command()
def steer(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name or TOML file: its train split makes the pairs.")],
    out: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the adapter goes; it must not be there yet.")],
    name: Annotated[str | None, typer.Option(help="Of the recipe in its manifest [default: TASK-concise].")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "smollm2-135m-reasoner",
    pairs: Annotated[
        Path | None, typer.Option(help="A file of JSON lines with prompt, verbose and concise, instead of pairs made here.")
    ] = None,
    keep_pairs: Annotated[Path | None, typer.Option(help="Where the pairs go, as --pairs reads them.")] = None,
    count: Annotated[int | None, typer.Option(help="Examples to make pairs from [default: 48].", min=4)] = None,
    verbose: Annotated[str | None, typer.Option(help="The long chain: own, or prompted to be long [default: own].")] = None,
    concise: Annotated[
        str | None, typer.Option(help="The short one: gold, prompted to be brief, or the answer alone [default: gold].")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="diffmean: difference of means; ces: a trained vector [default: diffmean].")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="Of diffmean: mean_cot or last [default: mean_cot].")] = None,
    eps: Annotated[float | None, typer.Option(help="The largest mean KL to the backbone, nats a token [default: 0.03].")] = None,
    layer: Annotated[
        list[float] | None, typer.Option(help="Layers to try: indices, or shares of the depth [default: 0.4 to 0.8].")
    ] = None,
    items: Annotated[int | None, typer.Option(help="Items of the search split for the sign test [default: 24].", min=8)] = None,
    tolerance: Annotated[float | None, typer.Option(help="Accuracy that a layer may cost on them [default: 0.05].")] = None,
    refusal_prompts: Annotated[Path | None, typer.Option(help="Prompts of the refusal probe, one a line.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the examples and of a trained vector.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a steering vector that shortens chains, as strong as a measured KL allows; refused where neither direction shortens."""
    from service.commands.steer import steer as run

    spec: dict[str, object] = {
        "num_examples": count,
        "verbose": verbose,
        "concise": concise,
        "vector": method,
        "pooling": pooling,
    }
    spec |= {"eps": eps, "items": items, "tolerance": tolerance, "seed": seed}
    spec |= {"layers": tuple(map(layer_of, layer)) if layer else None}
    spec |= {key: str(file.resolve()) if file else None for key, file in (("pairs", pairs), ("refusal_prompts", refusal_prompts))}
    run(task, out, name, backbone, spec, keep_pairs, as_json)


@steering_app.command("export-gguf")
def export_gguf(
    directory: Annotated[Path, typer.Argument(help="A directory of adapter files with a steering vector.")],
    file: Annotated[Path, typer.Argument(help="The control vector to write, for llama.cpp.")],
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    as_json: Json = False,
) -> None:
    """Write a steering vector as a control vector of llama.cpp, its strength inside."""
    from service.commands.steer import export_gguf as run

    run(directory, file, backbone, as_json)


@steering_app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(help="A control vector of llama.cpp with one direction.")],
    out: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the adapter goes; it must not be there yet.")],
    domain: Annotated[
        str | None, typer.Option(help="The task that it is published for [default: none, adapter files for evaluate alone].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the recipe in its manifest [default: TASK-vector].")] = None,
    eps: Annotated[
        float | None, typer.Option(help="The mean KL to the backbone that its gate allows, nats a token [default: 0.03].")
    ] = None,
    backbone: Annotated[str, typer.Option(help="The backbone that it was made on.")] = "smollm2-135m-reasoner",
    as_json: Json = False,
) -> None:
    """Read a control vector of llama.cpp as a steering adapter; with --domain, one to publish."""
    from service.commands.steer import import_gguf as run

    run(file, out, domain, name, eps, backbone, as_json)
