"""`graftline worker`: one more process, on any machine, in a study that `graftline tune` has made."""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation.tasks import task_named
from registry.home import home_directory
from registry.tracking import Tracking
from service.preempted import START_AGAIN, ends_orderly
from service.sweep_view import LinesView
from tuning.errors import Preempted, StorageAway, SweepStopped
from tuning.study import Sweep


def worker(study: str, storage: str | None, home: Path | None, tracking_uri: str | None) -> int:
    """0: the study has all it wanted, or was stopped. 75: told to end, or the database is away. 1: trying on cannot mend it."""
    from adapters.backbone import sources_of

    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri)
    try:
        sweep = Sweep.joined(study, place, tracking, storage)
        for task in (sweep.recipe.domain, *sweep.recipe.protected):
            task_named(task)  # what another machine has and this one lacks is said before a trial is taken
        sources_of(sweep.recipe.backbone)
        with ends_orderly() as ended:
            sweep.run(sweep.join(), LinesView(sweep.recipe, sys.stdout).on_event, ended)
    except (Preempted, StorageAway) as error:
        print(error, file=sys.stderr)
        return START_AGAIN
    except SweepStopped as error:
        print(error, file=sys.stderr)
        return 1
    return 0
