"""The commands for canaries: options and help only, as in service.cli."""

from __future__ import annotations

from typing import Annotated

import typer

from service.options import Home, Json, TrackingUri, seconds

canary_app = typer.Typer(
    no_args_is_help=True,
    help="Give a release a share of its name's traffic, or mirror it silently, before it is champion.",
)
Name = Annotated[str, typer.Argument(help="Registered model.")]


@canary_app.command()
def start(
    release: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The published version.")],
    share: Annotated[
        float | None, typer.Option(help="Of the requests for NAME: above 0, at most 0.95 [default: 0.1; of a shadow 1].")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Write the share's requests a second time; no client reads what the release says.")
    ] = False,
    max_error_rate_rise: Annotated[
        float | None, typer.Option(help="How much more of the requests may fail than the champion's [default: 0.02].")
    ] = None,
    max_latency_ratio: Annotated[
        float | None, typer.Option(help="Times the champion's time to first token and per token, at most [default: 1.25].")
    ] = None,
    min_requests: Annotated[
        int | None, typer.Option(help="The release's requests before anything is concluded [default: 20].")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Chance of ever rolling back a release within its bounds, a process [default: 0.01].")
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="Start although the gate did not pass; needs --reason and stays visible.")
    ] = False,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Seconds for the gate, instead of the policy's.", callback=seconds)
    ] = None,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Start a canary beside the champion, once its gate has passed. Exit code 1: the gate did not pass.

    Services that follow the ledger take it up by themselves. Where it fails or slows more than its bounds allow, it is rolled
    back.
    """
    from service.commands.canary import start as run

    bounds = {
        "max_error_rate_rise": max_error_rate_rise,
        "max_latency_ratio": max_latency_ratio,
        "min_requests": min_requests,
        "alpha": alpha,
    }
    raise typer.Exit(run(release, share, shadow, bounds, reason, override, time_budget_s, home, tracking_uri, as_json))


@canary_app.command()
def share(
    name: Name,
    share: Annotated[float, typer.Argument(help="Of the requests for NAME, from now on.")],
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")] = "",
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Change the share. Whoever was answered by the release under the smaller share is under the larger one."""
    from service.commands.canary import share as run

    run(name, share, reason, home, tracking_uri, as_json)


@canary_app.command()
def status(name: Name, home: Home = None, tracking_uri: TrackingUri = None, as_json: Json = False) -> None:
    """What is under way by the ledger, and how earlier canaries ended. What a service has counted: GET /v1/releases/NAME."""
    from service.commands.canary import status as run

    run(name, home, tracking_uri, as_json)


@canary_app.command()
def stop(
    name: Name,
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")],
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """End the canary; the champion answers everybody again."""
    from service.commands.canary import stop as run

    run(name, reason, home, tracking_uri, as_json)


@canary_app.command()
def finish(
    name: Name,
    reason: Annotated[str, typer.Option(help="Kept in the ledger for ever.")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="Promote although the gate did not pass; needs --reason and stays visible.")
    ] = False,
    home: Home = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make the canary its name's champion: a promotion like any other."""
    from service.commands.canary import finish as run

    run(name, reason, override, home, tracking_uri, as_json)
