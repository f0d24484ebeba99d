"""The commands for decoding policies: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri, listed, seconds

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


@policy_app.command("tune-decoding")
def tune_decoding(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="NAME, NAME@VERSION or NAME@ALIAS.")],
    policy: Annotated[
        str,
        typer.Option(
            metavar="KIND,...",
            help="What is searched: budget, ramp, minimum, tip, cyclic, branches, steering [default: budget, tip and steering, "
            "as far as the release and the engine have them].",
        ),
    ] = "",
    trials: Annotated[int | None, typer.Option(help="Policies to read, the policy off among them [default: 24].", min=2)] = None,
    items: Annotated[
        int | None, typer.Option(help="Of the domain to choose by, and as many others to confirm by [default: 100].", min=8)
    ] = None,
    family_items: Annotated[int | None, typer.Option(help="Of each protected family, likewise [default: 24].", min=8)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="A reply's, at most [default: 128].", min=16)] = None,
    tolerance: Annotated[float | None, typer.Option(help="Accuracy that fewer tokens may cost at most [default: 0.05].")] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="FIELD=LOW:HIGH", help="Narrower than the field's own, as budget.max_trace_tokens=8:64."),
    ] = None,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Seconds after which no further trial starts.", callback=seconds)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler [default: 0].")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be searched, what not and why, and how long a trial takes.")
    ] = False,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Search a release's decoding policy for fewer tokens or more right answers; what is shown to be better is a new version.

    Nothing is fitted. A policy is chosen on one half of the select split and must hold on the other, against the policy off and
    against the release's own; the protected families are kept as in a sweep. Where nothing is better, nothing is written (exit
    code 0). The new version is a candidate: it has yet to pass the gate, whose items are not read here. Stopped, the same command
    goes on.
    """
    from service.commands.tune_decoding import tune_decoding as run

    values: dict[str, object] = {
        "kinds": listed(policy) or None,
        "trials": trials,
        "items": items,
        "family_items": family_items,
        "max_new_tokens": max_new_tokens,
        "tolerance": tolerance,
        "time_budget_s": time_budget_s,
        "seed": seed,
    }
    run(release, values, ranges or [], dry_run, home, tracking_uri, as_json)
