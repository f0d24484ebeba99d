"""The home directory: where studies, the local MLflow store and downloaded releases are kept."""

from __future__ import annotations

import os
from pathlib import Path


def home_directory(given: Path | str | None = None) -> Path:
    """The given one, else $GRAFTLINE_HOME, else ./.graftline; absolute, not necessarily there yet."""
    return Path(given or os.environ.get("GRAFTLINE_HOME") or ".graftline").expanduser().absolute()
