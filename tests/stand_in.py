"""A stand-in for `graftline worker`: notes how it was started, and ends as a test wants."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuning.executors import EXECUTORS
from tuning.executors.executor import Executor, Launch, WorkerCommand
from tuning.executors.watch import watch

_PROGRAM = """\
#!{python} -IS
import json, os, signal, sys, time
folder = {folder!r}
number = len(os.listdir(folder))
while True:
    try:
        note = os.open(os.path.join(folder, f"{{number:03}}.json"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        break
    except FileExistsError:
        number += 1
end = {ends!r}[min(number, {last})]
def told(*_):
    os.write(note, b" TERM")
    os._exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if end == "deaf" else told)
os.write(note, json.dumps({{"words": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}).encode())
print("stand-in", number, flush=True)
if end in ("wait", "deaf"):
    time.sleep(120)
if end < 0:
    os.kill(os.getpid(), -end)
sys.exit(end)
"""
STORAGE = "postgresql+psycopg://me@db.example.org/stu 'dies'"
_USUAL: dict[str, dict[str, object]] = {"local": {"gpus": (), "backoff_s": 0.01, "grace_s": 20}, "ray": {"grace_s": 30}}
# A process that starts workers: its arguments are the executor's name, a folder, the program, the number of workers, the storage
# and the executor's settings.
PARENT = """
import json
import signal
import sys
from pathlib import Path
from tuning.executors import EXECUTORS
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.watch import watch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes begin without it
name, folder, program, num_workers, storage, settings = sys.argv[1:]
command = WorkerCommand("study", storage, program=(program,))
try:
    sys.exit(watch(EXECUTORS[name](Launch(command, Path(folder)), json.loads(settings)), int(num_workers), print))
except KeyboardInterrupt:
    sys.exit(130)
"""


class StandIn:
    """An executable named graftline; `ends` says for each start an exit code, minus a signal, "wait" or "deaf" (to SIGTERM)."""

    def __init__(self, folder: Path, *ends: int | str) -> None:
        self.folder = folder / "bin dir"
        self.folder.mkdir(parents=True)
        self._notes = folder / "notes"
        self._notes.mkdir()
        self.program = self.folder / "graftline"
        ends = ends or (0,)
        text = _PROGRAM.format(python=sys.executable, folder=str(self._notes), ends=ends, last=len(ends) - 1)
        self.program.write_text(text)
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Each with its words, environment and pid, and whether it was told to end."""
        notes = [note.read_text() for note in sorted(self._notes.iterdir())]
        return [
            json.loads(text.removesuffix(" TERM")) | {"told": text.endswith(" TERM")} for text in notes if text.startswith("{")
        ]

    def wait_for(self, num_starts: int) -> None:
        until(lambda: len(self.starts) >= num_starts)


def executor_of(
    name: str,
    stand_in: StandIn,
    folder: Path,
    storage: str = STORAGE,
    tracking_uri: str | None = None,
    **values: object,
) -> Executor:
    """By name, with the stand-in in the place of the program, and paths that a shell would take apart."""
    command = WorkerCommand("a 'study'", storage, folder / "home dir", tracking_uri, (str(stand_in.program),))
    return EXECUTORS[name](Launch(command, folder / "study dir"), {**_USUAL[name], **values})


def watched(executor: Executor, num_workers: int) -> tuple[int, list[str]]:
    """The exit code, and what was told."""
    told: list[str] = []
    return watch(executor, num_workers, told.append, poll_s=0.02), told


def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    late = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < late, "it never held"
        time.sleep(0.02)
