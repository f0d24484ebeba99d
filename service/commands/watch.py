"""`graftline watch`: whole files that arrive in a directory, each taken in by its own `graftline continue`, one at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.claim import held
from registry.errors import RegistryUnreachable
from registry.home import home_directory
from registry.names import resolve
from registry.tracking import Tracking
from service.arrivals import Arrivals, Look, Mark, Waiting
from service.preempted import START_AGAIN

LATER = START_AGAIN
MARK_OF: dict[int, Mark] = {0: "processed", 3: "processed", 2: "rejected"}  # by the exit code of `graftline continue`
MAX_CRASHES = 3  # of one file, before it is rejected
STOP_S = 60.0  # for a child that was asked to stop
_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Watch:
    """`command` is run with a file: it prints one JSON object and ends with the exit codes of `graftline continue`."""

    arrivals: Arrivals
    command: Sequence[str]
    poll_s: float
    as_json: bool
    stop: threading.Event

    def run(self, once: bool) -> int:
        """Until it is stopped; with `once`, until no file is left that can be taken in now: 75 where some must wait."""
        before: dict[Path, Look] = {}
        waiting = Waiting(self.poll_s, time.monotonic)
        crashes: dict[Path, int] = {}
        while not self.stop.is_set():
            try:
                now = self.arrivals.look()
            except OSError as error:  # a network file system may come back
                self._say(self.arrivals.directory, f"cannot be looked at, to be tried again: {error.strerror or error}", LATER)
                if once:
                    return LATER
                self.stop.wait(self.poll_s)
                continue
            waiting.keep(now)
            ready = [file for file in self._unmarked(before, now, waiting) if waiting.is_due(file)]
            for file in ready:
                if self.stop.is_set():
                    break
                self._take(file, now[file], waiting, crashes)
            settled = before == now and not ready
            before = now
            if once and settled:
                return LATER if waiting else 0
            self.stop.wait(self.poll_s)
        return 0

    def _unmarked(self, before: Mapping[Path, Look], now: Mapping[Path, Look], waiting: Waiting) -> list[Path]:
        """What is ready. A file that cannot be read, to see whether its mark is of these contents, must wait."""
        found = list[Path]()
        for file, look in now.items():
            try:
                found += self.arrivals.ready(before, {file: look})
            except OSError as error:
                self._put_off(file, error, waiting)
        return found

    def _put_off(self, file: Path, error: OSError, waiting: Waiting) -> None:
        if waiting.is_due(file):
            self._say(file, f"to be tried again ({waiting.again(file)} so far): {error.strerror or error}", LATER)

    def _take(self, file: Path, look: Look, waiting: Waiting, crashes: dict[Path, int]) -> None:
        try:
            with file.open("rb") as opened:  # whose right to be read comes later is no bad file
                opened.read(1)
        except OSError as error:
            self._put_off(file, error, waiting)
            return
        code, told = self._child(file)
        if self.stop.is_set() and code not in MARK_OF:
            return  # it goes on where it was stopped, the next time
        if not self._is_as_it_was(file, look):
            self._say(file, "changed while it was read", code)
            return
        if code not in MARK_OF:
            tries = waiting.again(file)
            if code != LATER:
                crashes[file] = crashes.get(file, 0) + 1
            if crashes.get(file, 0) < MAX_CRASHES:
                self._say(file, f"to be tried again ({tries} so far): {_reason(told)}", code)
                return
        mark = MARK_OF.get(code, "rejected")
        try:
            self.arrivals.mark(file, look, mark, {"exit_code": code, **_short(told)})
        except OSError as error:  # what was done is kept: the next time it is only said again
            self._put_off(file, error, waiting)
            return
        waiting.done(file)
        self._say(file, f"{mark}: {_reason(told)}", code)

    def _is_as_it_was(self, file: Path, look: Look) -> bool:
        try:
            return self.arrivals.look().get(file) == look
        except OSError:
            return False

    def _child(self, file: Path) -> tuple[int, dict[str, Any]]:
        """The exit code and what was printed. A stop is handed on as Ctrl-C: what was done until then is kept."""
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                [*self.command, "--data", str(file)],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                start_new_session=True,
            )
            while process.poll() is None:
                if self.stop.wait(0.1):
                    _stop(process)
            out.seek(0)
            try:
                told = json.loads(out.read())
            except ValueError:
                told = {}
        return process.returncode, told if isinstance(told, dict) else {}

    def _say(self, file: Path, text: str, code: int) -> None:
        line = json.dumps({"file": file.name, "exit_code": code, "said": text}) if self.as_json else f"{file.name}: {text}"
        print(line, flush=True)


def watch(
    directory: Path,
    name: str,
    poll_s: float,
    once: bool,
    options: Sequence[str],
    home: Path | None,
    uri: str | None,
    as_json: bool,
) -> int:
    """0 when it was stopped in order; 75 where another process watches the directory, or the registry is away."""
    place = home_directory(home)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    try:
        resolve(Tracking.at(place, uri).existing(), name)  # a name without a champion is said before the first file
    except RegistryUnreachable as error:
        print(f"graftline: {error}", file=sys.stderr)
        return LATER
    told = ["--home", str(place), *(["--tracking-uri", uri] if uri else []), "--json"]
    command = [sys.executable, "-m", "service.cli", "continue", name, *options, *told]
    with _stopping() as stop, held(directory / ".graftline-watch.lock") as holder:
        if holder:
            print(f"graftline: {directory} is watched by one process at a time, and {holder} does so now.", file=sys.stderr)
            return LATER
        return Watch(Arrivals(directory), command, poll_s, as_json, stop).run(once)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by SIGTERM or Ctrl-C."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(told: dict[str, Any]) -> str:
    error = told.get("error")
    return str(error["message"] if isinstance(error, dict) and "message" in error else told.get("reason", "it left no word"))


def _short(told: dict[str, Any]) -> dict[str, Any]:
    """What a mark says; the rest is in the folder of the round."""
    return {"reason": _reason(told), **{key: told[key] for key in ("status", "release", "folder") if key in told}}
