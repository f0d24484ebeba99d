"""A job's own process: `python -m service.jobs.process DIRECTORY`, at low priority, told to end by SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pydantic import JsonValue

from adapters.whole_file import write_whole
from service.jobs.record import Job, JobEvent, Kind, Outcome
from service.jobs.store import COMMITTING, JOB, RESULT, append_event
from service.lease import served_id
from service.settings import Settings

NICENESS = 10
_OWN_PACKAGES = ("adapters", "engine", "evaluation", "registry", "tuning", "service")


class Telling:
    """How a job tells what it does, and marks the moment in which it must not be interrupted."""

    def __init__(self, place: Path, settings: Settings) -> None:
        self.place = place
        self._backbone, self._home = settings.backbone, f"{settings.home.absolute()}/"

    def __call__(self, message: str, data: dict[str, JsonValue] | None = None) -> None:
        append_event(self.place, JobEvent(at=time.time(), message=self.without_paths(message), data=data))

    def without_paths(self, text: str) -> str:
        """The sentence without where the server keeps its files."""
        return text.replace(self._home, "").replace(self._backbone, served_id(self._backbone))

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Inside, the job is writing what must be whole: whoever cancels it now waits for the end of it."""
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (self.place / COMMITTING).touch()
        try:
            yield
        finally:
            (self.place / COMMITTING).unlink(missing_ok=True)
            signal.signal(signal.SIGTERM, before)


Work = Callable[[Job, Settings, Telling], dict[str, JsonValue]]


def main(place: Path) -> int:
    signal.signal(signal.SIGTERM, _interrupted)
    os.nice(NICENESS)
    job = Job.model_validate_json((place / JOB).read_bytes())
    settings = Settings.from_environment()
    tell = Telling(place, settings)
    try:
        outcome = Outcome(result=_work(job.kind)(job, settings, tell))
    except KeyboardInterrupt:
        return 1
    except Exception as error:
        traceback.print_exc()  # to the log, with the paths that no reply may hold
        outcome = Outcome(error=tell.without_paths(_told(error)))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_whole(place / RESULT, outcome.model_dump_json())
    return 0 if outcome.error is None else 1


def _work(kind: Kind) -> Work:
    # Imported here: each brings what only its process may hold.
    if kind == "fine_tuning":
        from service.jobs.sweep import sweep

        return sweep
    from service.jobs.promotion import promotion

    return promotion


def _told(error: Exception) -> str:
    """Our own errors are sentences for the reader; of any other, its kind."""
    if type(error).__module__.partition(".")[0] in _OWN_PACKAGES:
        return str(error)
    return f"The job failed ({type(error).__name__}); its log on the server says where."


def _interrupted(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is putting things away
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
