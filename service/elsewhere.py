"""The options by which a command that is named as the next one finds what this one found: none where it looks there by itself."""

from __future__ import annotations

import shlex
from pathlib import Path

from registry.home import home_directory
from registry.tracking import Tracking
from tuning.database_url import shown


def elsewhere(home: Path, tracking_uri: str | None = None) -> str:
    """Each with a blank before it; a password is hidden. `tracking_uri` None: the one that is usual for the home."""
    usual = Tracking.at(home).uri
    told = {
        "--home": (str(home), str(home_directory())),
        "--tracking-uri": (shown(tracking_uri or usual), shown(usual)),
    }
    return "".join(f" {option} {shlex.quote(here)}" for option, (here, there) in told.items() if here != there)
