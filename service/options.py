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
    str | None, typer.Option("--tracking-uri", help="An MLflow server or database [default: SQLite in the home].")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts instead of text.")]
