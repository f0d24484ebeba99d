"""Trials run in processes of their own, which leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuning.isolation import prepare

SCRIPT = """
import multiprocessing, os, sys, time
from tuning.isolation import end_with_parent

def trial(out):
    end_with_parent()
    os.write(out, f"{os.getpid()}\\n".encode())
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=trial, args=(1,), daemon=True).start()
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_trial_ends_with_the_process_that_waits_for_it_even_when_that_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        trial = int(parent.stdout.readline())
        assert is_alive(trial)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        late = time.monotonic() + 30
        while is_alive(trial) and time.monotonic() < late:
            time.sleep(0.05)
        assert not is_alive(trial)


def test_trials_wait_without_spinning_and_what_is_started_later_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    prepare()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
