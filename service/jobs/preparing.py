"""A job's data, checked and written before there is a job: in a process of its own where it is large.

`python -m service.jobs.preparing` reads its arguments as JSON from its input and prints where the task is, or what is wrong.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from service.errors import ApiError
from service.jobs.process import NICENESS
from service.jobs.rows import write_task

log = logging.getLogger("graftline.jobs")
# Rows in memory are several times their bytes in the file: more than this and they are not held where requests are answered.
IN_THIS_PROCESS_BYTES = 8 * 2**20
COMMAND = (sys.executable, "-m", "service.jobs.preparing")


def prepared(
    file: Path, filename: str, directory: Path, name: str, columns: Mapping[str, str | tuple[str, ...]] | None, separator: str
) -> Path:
    """As `write_task`."""
    if file.stat().st_size <= IN_THIS_PROCESS_BYTES:
        return write_task(file, filename, directory, name, columns, separator)
    asked = {"file": str(file), "filename": filename, "directory": str(directory), "name": name}
    ended = subprocess.run(
        COMMAND, input=json.dumps({**asked, "columns": columns, "separator": separator}), capture_output=True, text=True
    )
    if ended.returncode:
        log.error("Training data could not be prepared (exit status %d): %s", ended.returncode, ended.stderr[-4000:])
        message = "The server could not read this training data: it may be too large for its memory. Send fewer rows."
        raise ApiError(500, message, "not_prepared", "training_file", "server_error", {"x-should-retry": "false"})
    told = json.loads(ended.stdout.splitlines()[-1])
    if "task" in told:
        return Path(told["task"])
    raise ApiError(told["status"], told["message"], told["code"], told["param"])


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
