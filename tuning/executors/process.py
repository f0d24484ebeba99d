"""One worker as a process of this machine, in a session of its own: Ctrl-C reaches it only as an orderly end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_TETHER = Path(__file__).with_name("tether.py")
_ROOT = Path(__file__).parents[2]


def start_process(words: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """It ends with the calling thread at the latest. Output goes to the log, or where this process writes."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,
    )


def end_processes(processes: Iterable[subprocess.Popen[bytes]], grace_s: float) -> None:
    """SIGTERM to each; what is there after that many seconds is killed with its children, and all at once on Ctrl-C."""
    processes = [process for process in processes if process.poll() is None]
    try:
        for process in processes:
            process.terminate()
        until = time.monotonic() + grace_s
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def threads_environment(threads: int) -> dict[str, str]:
    return {"GRAFTLINE_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
