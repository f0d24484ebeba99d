"""The commands of releases: options and help only, as in service.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.options import Home, Json, Storage, TrackingUri, seconds

registry_app = typer.Typer()


@registry_app.command()
def publish(
    source: Annotated[
        str, typer.Argument(metavar="DIRECTORY|STUDY", help="A trial's adapter directory, or a study's name (its best trial).")
    ],
    name: Annotated[str | None, typer.Option(help="Registered model [default: the recipe's name].")] = None,
    trial: Annotated[int | None, typer.Option(help="Of the study, also one that lost more than a margin.")] = None,
    storage: Storage = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Publish an adapter as a new version of a registered model. It is not served before it is promoted."""
    from service.commands.releases import publish as run

    run(source, name, home, tracking_uri, as_json, trial, storage)


@registry_app.command()
def promote(
    release: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The published version.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="Promote although the gate did not pass; needs --reason and stays visible.")
    ] = False,
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
    """Run the gate on fresh items and, if it passes, make the version its name's champion. Exit code 1: not promoted."""
    from service.commands.releases import promote as run

    raise typer.Exit(run(release, reason, override, time_budget_s, gate, home, tracking_uri, as_json))


@registry_app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")],
    to: Annotated[int | None, typer.Option(help="An earlier champion's version [default: the previous one].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again; nothing is deleted."""
    from service.commands.releases import rollback as run

    run(name, reason, to, home, tracking_uri, as_json)


@registry_app.command()
def approve(
    release: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="What somebody else has proposed.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever [default: the proposal's].", show_default=False)] = "",
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make a proposed version champion, where the policy of its name asks for two people (`approvals = 2`)."""
    from service.commands.approvals import approve as run

    run(release, reason, home, tracking_uri, as_json)


@registry_app.command()
def policy(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    gate: Annotated[
        Path | None, typer.Option(help="A TOML file with keys of a policy to change [default: show the policy].")
    ] = None,
    reason: Annotated[str, typer.Option(help="Of the change; kept for ever.")] = "",
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Show or change what a name asks of every release: margins, alpha, protected families, how many people approve."""
    from service.commands.approvals import policy as run

    run(name, gate, reason, home, tracking_uri, as_json)


@registry_app.command()
def doctor(
    name: Annotated[
        str | None, typer.Argument(help="Registered model [default: all of them, and runs].", show_default=False)
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be: the alias, edited entries that a copy tells, dead runs.")
    ] = False,
    accept: Annotated[
        str | None, typer.Option(metavar="REASON", help="Keep on record what cannot be put right; it is no finding any more.")
    ] = None,
    stale_after_h: Annotated[
        float, typer.Option(help="Hours after which a run of another machine that says RUNNING counts as dead.", min=0)
    ] = 168.0,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Find edited or deleted entries, a moved alias, a champion that is gone, dead runs. Exit code 1: something is left."""
    from service.commands.doctor import doctor as run

    raise typer.Exit(run(name, repair, accept, stale_after_h, home, tracking_uri, as_json))


@registry_app.command("export")
def export_(
    release: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A published version.")],
    target: Annotated[
        Path, typer.Argument(metavar="FILE|DIRECTORY", help="Not there yet; an archive if it ends in .tar.gz or .tar.")
    ],
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Write a release with its manifest and its gate's report to a file or folder, under one SHA-256."""
    from service.commands.transfer import export as run

    run(release, target, home, tracking_uri, as_json)


@registry_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIRECTORY", help="What `graftline export` wrote.")],
    name: Annotated[str | None, typer.Option(help="Registered model [default: the one it comes from].")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the export printed: anything else is refused.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone that it must fit [default: the one it names, if it is on this machine].")
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Publish an exported release as a candidate, once every hash is right. Its gate is run anew when it is promoted."""
    from service.commands.transfer import import_ as run

    run(source, name, sha256, backbone, home, tracking_uri, as_json)


@registry_app.command()
def copy(
    release: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A published version.")],
    to: Annotated[str, typer.Option(metavar="TRACKING_URI|HOME", help="The other registry.")],
    name: Annotated[str | None, typer.Option(help="Registered model there [default: the same].")] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Export a release and import it into another registry, as a candidate there."""
    from service.commands.transfer import copy as run

    run(release, to, name, home, tracking_uri, as_json)


@registry_app.command()
def status(home: Home = None, tracking_uri: TrackingUri = None, as_json: Json = False) -> None:
    """Champions, candidates, their gate verdicts, and any alias that was moved past the ledger."""
    from service.commands.status import status as run

    run(home, tracking_uri, as_json)
