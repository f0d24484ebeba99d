"""The commands that make adapters out of adapters, and those that say what a part of one is worth; see service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri, listed, seconds

Subjects = Annotated[
    list[str], typer.Argument(metavar="RELEASE|DIRECTORY...", help="NAME, NAME@VERSION, NAME@ALIAS, or directories, two or more.")
]
Subject = Annotated[
    str, typer.Argument(metavar="RELEASE|DIRECTORY", help="NAME, NAME@VERSION, NAME@ALIAS, or a directory of adapter files.")
]
Out = Annotated[Path, typer.Option("--out", help="The new adapter's directory; must not be there yet.")]
Name = Annotated[str | None, typer.Option("--name", help="Registered model it is meant for [default: the first one's].")]


def merge(
    subjects: Subjects,
    out: Out,
    combination: Annotated[
        str, typer.Option(metavar="cat|svd|ties|dare|dare_ties", help="cat is the exact sum, of summed rank; the rest are cut.")
    ] = "cat",
    weights: Annotated[
        str, typer.Option(metavar="W,...", help="One an adapter, in their order: 0.5,1 [default: 1 each].", show_default=False)
    ] = "",
    density: Annotated[float, typer.Option(help="Share of entries that ties and dare keep.")] = 0.5,
    rank: Annotated[int | None, typer.Option(help="Rank after an SVD [default: the largest of theirs].")] = None,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    name: Name = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Merge LoRA adapters of one backbone into one, ready to publish: the gate then measures it like any other."""
    from service.commands.merge import merge as run

    settings = {"combination": combination, "weights": listed(weights), "density": density, "rank": rank, "seed": seed}
    run(subjects, out, settings, name, home, tracking_uri, as_json)


def reduce_intruders(
    subject: Subject,
    out: Out,
    top_k: Annotated[int, typer.Option(help="Of a weight's strongest dimensions, how many are looked at.")] = 10,
    threshold: Annotated[float, typer.Option(help="Cosine to a frozen dimension below which one intrudes.")] = 0.5,
    kept: Annotated[float, typer.Option(help="Share of an intruder that stays.")] = 0.75,
    name: Name = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make a new adapter in which dimensions that the backbone does not have are damped; the old one stays as it is.

    Where there are none, says so and writes nothing.
    """
    from service.commands.merge import reduce_intruders as run

    run(subject, out, {"top_k": top_k, "threshold": threshold, "kept": kept}, name, home, tracking_uri, as_json)


def softcot_arms(
    recipe: Annotated[Path, typer.Argument(help="A TOML file that fits soft thoughts; nothing is searched.")],
    seeds: Annotated[int, typer.Option(help="Training seeds of each arm.", min=1)] = 3,
    time_budget_s: Annotated[float | None, typer.Option(help="Seconds after which no arm is begun.", callback=seconds)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fit soft thoughts with an assistant, as a static prompt and not at all: whose is the gain? Exit code 1: run it again."""
    from service.commands.softcot_arms import softcot_arms as run

    raise typer.Exit(run(recipe, seeds, time_budget_s, home, as_json))


def sequence(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="TOML files in the order of their domains, two or more.")
    ],
    policies: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="own, continued, merged, routed: what answers after each stage [default: all]."),
    ] = "",
    orders: Annotated[
        str, typer.Option(metavar="given|all|N", help="Orders of the domains; N: the given one, its reverse, and others drawn.")
    ] = "given",
    items: Annotated[int, typer.Option(help="Items a domain, of the select split.", min=8)] = 60,
    family_items: Annotated[int, typer.Option(help="Items a protected family.", min=8)] = 40,
    router_items: Annotated[int, typer.Option(help="Questions a class and split that a router is fitted on.", min=100)] = 240,
    combination: Annotated[str, typer.Option(metavar="cat|svd|ties|dare|dare_ties", help="How adapters are merged.")] = "cat",
    weights: Annotated[
        str, typer.Option(metavar="W,...", help="Of a merge, one a recipe, in their order [default: 1 each].", show_default=False)
    ] = "",
    sweep: Annotated[bool, typer.Option("--sweep", help="Search each recipe, instead of fitting its own values.")] = False,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Fit several domains one after another under four policies: what each stage did to all domains and to reasoning.

    Stopped, it goes on; each stage is kept as it is read.
    """
    from service.commands.sequence import sequence as run

    settings = {
        **({"policies": listed(policies)} if policies else {}),
        "orders": int(orders) if orders.isdecimal() else orders,
        "items": items,
        "family_items": family_items,
        "router": {"items": router_items},
        "merge": {"combination": combination, "weights": listed(weights)},
    }
    run(recipes, settings, sweep, home, tracking_uri, as_json)
