"""The options by which a command that is named as the next one finds what this one found: none where it looks there by itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from registry.database_url import shown
from registry.home import home_directory
from registry.tracking import Tracking

if TYPE_CHECKING:
    from tuning.study import Sweep


def elsewhere(home: Path, tracking_uri: str | None = None) -> str:
    """Each with a blank before it; a password is hidden. `tracking_uri` None: the one that is usual for the home."""
    usual = Tracking.at(home).uri
    told = {
        "--home": (str(home), str(home_directory())),
        "--tracking-uri": (shown(tracking_uri or usual), shown(usual)),
    }
    return "".join(f" {option} {shlex.quote(here)}" for option, (here, there) in told.items() if here != there)


def found_by(sweep: Sweep) -> str:
    """The same for a study and its runs."""
    from tuning.storage import StudyStorage

    is_found = sweep.storage_url == StudyStorage.of(sweep.home, sweep.recipe.name).url
    storage = "" if is_found else f" --storage {shlex.quote(sweep.kept_in.shown)}"
    return f"{storage}{elsewhere(sweep.home, sweep.tracking.uri)}"
