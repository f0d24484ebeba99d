"""The commands for who may ask and what was done: options and help only, as in service.cli."""

from __future__ import annotations

from typing import Annotated

import typer

from service.options import Home, Json

keys_app = typer.Typer(no_args_is_help=True, help="The API keys of the service: who may ask for what, and how much.")
audit_app = typer.Typer()


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the log and the metrics.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="complete, tune, promote or admin (all of them); may be repeated [default: complete]."),
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="WHEN", help="90d, 12h or a date such as 2027-06-30 (UTC).")] = None,
    requests_per_min: Annotated[int | None, typer.Option(help="Requests a minute [default: any number].", min=1)] = None,
    tokens_per_min: Annotated[int | None, typer.Option(help="Tokens of prompts and replies a minute.", min=1)] = None,
    max_running: Annotated[int | None, typer.Option(help="Requests that wait or run at one time.", min=1)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key and print its secret, which is kept nowhere. From the first key on, the service asks everybody for one."""
    from service.commands.keys import create as run

    quota = {"requests_per_min": requests_per_min, "tokens_per_min": tokens_per_min, "max_running": max_running}
    run(name, tuple(scope or ("complete",)), expires, quota, home, as_json)


@keys_app.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """Print every key with its scopes, quotas and state; never a secret."""
    from service.commands.keys import list_keys as run

    run(home, as_json)


@keys_app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME|ID", help="As `graftline keys list` prints it.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take a key back: the next request with it is refused, without a restart. Replies under way are written to their end."""
    from service.commands.keys import revoke as run

    run(key, home, as_json)


@audit_app.command()
def audit(
    last: Annotated[int | None, typer.Option(help="Only so many, the latest [default: all].", min=1)] = None,
    act: Annotated[str, typer.Option(help="Only acts that begin so: key, adapter, release.promote, job.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print the audit log: who did which administrative act through the service, when, and how it ended."""
    from service.commands.audit import audit as run

    run(last, act, home, as_json)
