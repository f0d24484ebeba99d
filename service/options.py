"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Where studies, the registry and the cache are kept [default: $GRAFTLINE_HOME, else ./.graftline]."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="An MLflow server or database [default: $GRAFTLINE_TRACKING_URI, else SQLite in the home]."
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="The study's database, postgresql+psycopg://..., for workers on several machines "
        "[default: $GRAFTLINE_STORAGE, else a file in the home].",
    ),
]
Price = Annotated[
    str | None,
    typer.Option(
        "--price-per-hour",
        help='Of one worker, with any currency: "2.50 EUR" [default: the recipe\'s, else $GRAFTLINE_PRICE_PER_HOUR].',
    ),
]
TRIALS = 2  # of each arm of `graftline continue`, where nothing else is asked for
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts instead of text.")]


def seconds(option: typer.CallbackParam, value: float | None) -> float | None:
    """A finite number above 0; None where the option was left out."""
    from service.pace import checked_seconds

    return checked_seconds(value, option.opts[0])


def layer_of(value: float) -> int | float:
    """A whole number is an index; any other a share of the depth, or none."""
    return int(value) if value.is_integer() else value


def numbers(names: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(map(int, listed(names)))
    except ValueError as error:
        raise typer.BadParameter(f"numbers between commas, such as 1,2,3, but got {names!r}") from error


def listed(names: str) -> tuple[str, ...]:
    """What an option lists between commas."""
    return tuple(name for name in map(str.strip, names.split(",")) if name)
