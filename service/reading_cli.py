"""The commands that read an adapter and what decoding makes of it: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, Storage, TrackingUri

Subject = Annotated[
    str, typer.Argument(metavar="RELEASE|DIRECTORY", help="NAME, NAME@VERSION, NAME@ALIAS, or a directory of adapter files.")
]


def hybrid(
    subject: Subject,
    items: Annotated[int, typer.Option(help="Items to fit the vectors on, and as many others to judge them on.", min=8)] = 60,
    categories: Annotated[int, typer.Option(help="Vectors, one a category.", min=1, max=15)] = 5,
    direct: Annotated[bool, typer.Option("--direct", help="Ask for the answer alone, instead of for steps and answer.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Of a reply.", min=1)] = 160,
    keep: Annotated[Path | None, typer.Option(help="Where the routed profile goes; the directory must not be there yet.")] = None,
    domain: Annotated[str | None, typer.Option(help="A task's name or TOML file [default: what it was fitted on].")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Steer the backbone by few vectors where an adapter would write otherwise: the share of its gain that they recover."""
    from service.commands.hybrid import hybrid as run

    run(subject, items, categories, direct, max_tokens, keep, domain, backbone, home, tracking_uri, as_json)


def thoughts(
    subject: Subject,
    items: Annotated[int, typer.Option(help="Questions about beliefs.", min=8)] = 48,
    hypotheses: Annotated[int, typer.Option(help="About the mind that is asked about.", min=2, max=8)] = 4,
    seed: Annotated[int, typer.Option(help="Of the stories and of what is drawn.")] = 0,
    backbone: Annotated[str | None, typer.Option(help="Backbone [default: the one it was fitted on].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Answer questions about beliefs plainly, after a perspective filter and after traced thoughts, with what each spends."""
    from service.commands.thoughts import thoughts as run

    run(subject, items, hypotheses, seed, backbone, home, tracking_uri, as_json)


def report(
    subject: Annotated[
        str, typer.Argument(metavar="STUDY|RELEASE", help="A study's name, or NAME (the champion), NAME@VERSION, NAME@ALIAS.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file [default: NAME-VERSION-report.html in this directory].", dir_okay=False)
    ] = None,
    study: Annotated[bool, typer.Option("--study", help="The study, where a release has the same name.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure what is not stored and needs no fit; stopped, it goes on.")
    ] = False,
    examples: Annotated[
        int | None, typer.Option(help="Traces a task to show, written where they are not stored [with --measure: 2].", min=1)
    ] = None,
    items: Annotated[int, typer.Option(help="Items a task, of what --measure reads.", min=8)] = 60,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write what is known of a study or a release on one HTML page, the gate's sentence first, and log it to MLflow."""
    from service.commands.report import report as run

    run(subject, out, study, measure, examples, items, home, tracking_uri, storage, as_json)
