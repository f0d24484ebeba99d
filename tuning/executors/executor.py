"""What starts workers: the one command, how its ends are read, and the protocol that each executor keeps."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from registry.database_url import has_secret
from registry.tracking import TRACKING_VARIABLE

STORAGE_VARIABLE = "GRAFTLINE_STORAGE"
DONE, STOPPED, REFUSED, START_AGAIN = 0, 1, 2, os.EX_TEMPFAIL  # what a worker ends with
FINAL = (DONE, STOPPED, REFUSED)  # starting it again would end alike; any other end is a death, or a preemption (START_AGAIN)

Phase = Literal["runs", "waits", "done", "stopped", "given up", "ended"]


@dataclass(frozen=True)
class WorkerCommand:
    """`graftline worker` for one study: the same on any machine."""

    study: str
    storage: str
    """The URL of the study's database. It may hold a password."""
    home: Path | None = None
    tracking_uri: str | None = None
    """So may this one."""
    program: tuple[str, ...] | None = None
    """None: the `graftline` of the machine that starts it."""

    def words(self) -> list[str]:
        """Without a URL that holds a password: everybody can read words, and the worker takes both from `environment` too."""
        words = [*(self.program or ("graftline",)), "worker", "--study", self.study]
        if not has_secret(self.storage):
            words += ["--storage", self.storage]
        if self.home is not None:
            words += ["--home", str(self.home)]
        if self.tracking_uri is not None and not has_secret(self.tracking_uri):
            words += ["--tracking-uri", self.tracking_uri]
        return words

    def environment(self) -> dict[str, str]:
        tracking = {} if self.tracking_uri is None else {TRACKING_VARIABLE: self.tracking_uri}
        return {STORAGE_VARIABLE: self.storage, **tracking}


@dataclass(frozen=True)
class Launch:
    """What is to be started, and where its files go."""

    command: WorkerCommand
    directory: Path
    """Of the study: scripts, manifests and logs are written into it."""
    submit: bool = False
    """Whether a script or manifest is also handed to its scheduler."""


@dataclass(frozen=True)
class WorkerState:
    """`stopped`: by errors that another start would meet again; `given up`: died too often; `ended`: because it was told to."""

    number: int
    phase: Phase
    exit_code: int | None = None
    """Of the last process; below 0 the signal that killed it. None: it has not ended yet, or nobody knows."""
    restarts: int = 0
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return self.phase not in ("runs", "waits")


class Executor(Protocol):
    """Starts workers of one study. Create the study first: workers only join it."""

    def start(self, num_workers: int) -> str:
        """Starts them, or writes what a scheduler starts them from; a text for the user. Call it once."""
        ...

    def poll(self) -> tuple[WorkerState, ...]:
        """Of every worker that this process watches; one that died is started again here. Empty where a scheduler watches."""
        ...

    def stop(self) -> None:
        """Ends what this process watches: each worker is told to, has some time, and is then killed."""
        ...


def program_here() -> tuple[str, ...]:
    """The `graftline` beside this Python, else the one on PATH, else this very code."""
    beside = Path(sys.executable).with_name("graftline")
    if os.access(beside, os.X_OK):
        return (str(beside),)
    found = shutil.which("graftline")
    return (found,) if found else (sys.executable, "-m", "service.cli")
