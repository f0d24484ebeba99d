"""A job's data, checked and written before there is a job: in a process of its own where it is large.

`python -m service.jobs.preparing` reads its arguments as JSON from its input and prints where the task is, or what is wrong.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from service.errors import ApiError
from service.jobs.process import NICENESS
from service.jobs.rows import write_task

log = logging.getLogger("graftline.jobs")
# Rows in memory are several times their bytes in the file: more than this and they are not held where requests are answered.
IN_THIS_PROCESS_BYTES = 8 * 2**20
_LOOK_S = 0.5
COMMAND = (sys.executable, "-m", "service.jobs.preparing")


def prepared(
    file: Path,
    filename: str,
    directory: Path,
    name: str,
    columns: Mapping[str, str | tuple[str, ...]] | None,
    separator: str,
    closed: threading.Event | None = None,
) -> Path:
    """As `write_task`. Once it is `closed`, which is looked at every half second, the work ends with a 503."""
    if file.stat().st_size <= IN_THIS_PROCESS_BYTES:
        return write_task(file, filename, directory, name, columns, separator)
    asked = {"file": str(file), "filename": filename, "directory": str(directory), "name": name}
    given = json.dumps({**asked, "columns": columns, "separator": separator})
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, error = _output(process, given, closed)
    if process.returncode:
        log.error("Training data could not be prepared (exit status %d): %s", process.returncode, error[-4000:])
        message = "The server could not read this training data: it may be too large for its memory. Send fewer rows."
        raise ApiError(500, message, "not_prepared", "training_file", "server_error", {"x-should-retry": "false"})
    told = json.loads(out.splitlines()[-1])
    if "task" in told:
        return Path(told["task"])
    raise ApiError(told["status"], told["message"], told["code"], told["param"])


def _output(process: subprocess.Popen[str], given: str, closed: threading.Event | None) -> tuple[str, str]:
    asked: str | None = given
    while True:
        try:
            return process.communicate(asked, timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            asked = None  # it has it
            if closed is not None and closed.is_set():
                process.kill()
                message = "This server is going away. Ask again: the one that takes its place answers."
                raise ApiError(503, message, "going_away", None, "server_error", {"retry-after": "5"}) from None


def main() -> None:
    os.nice(NICENESS)
    asked = json.load(sys.stdin)
    file, directory = Path(asked["file"]), Path(asked["directory"])
    try:
        task = write_task(file, asked["filename"], directory, asked["name"], asked["columns"], asked["separator"])
        told: dict[str, object] = {"task": str(task)}
    except ApiError as error:
        told = {"status": error.status, "message": error.message, "code": error.code, "param": error.param}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
