"""Calls the program of a scheduler: sbatch, kubectl."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from tuning.errors import NotSubmitted

_TIMEOUT_S = 120.0


def ran(words: Sequence[str], environment: Mapping[str, str] | None = None, given: str | None = None) -> str:
    """What it printed. Raises NotSubmitted where it is not here, or refuses."""
    if shutil.which(words[0]) is None:
        raise NotSubmitted(
            f"--submit calls {words[0]}, which is not on this machine's PATH. Leave --submit out, and run where it is: "
            f"{shlex.join(words)}"
        )
    try:
        done = subprocess.run(
            words, env={**os.environ, **(environment or {})}, input=given, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotSubmitted(
            f"{words[0]} did not answer for {_TIMEOUT_S:.0f} s. Ask the scheduler whether it has the job, then try again."
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise NotSubmitted(
            f"{words[0]} took no job: {said}. What it was to take is kept; correct what it names, then: {shlex.join(words)}"
        )
    return done.stdout.strip()
