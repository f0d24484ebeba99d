"""A stand-in for `graftline worker`: notes how it was started, and ends as a test wants."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    late = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < late, "it never held"
        time.sleep(0.02)
