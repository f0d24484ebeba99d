"""Workers as tasks of a real Ray: two nodes on this machine, the first with one GPU that it only believes to have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from stand_in import PARENT, StandIn, executor_of, watched
from test_isolation import is_alive

from tuning.errors import BadCluster, BadStorage

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_nodes")]
tasks = partial(executor_of, "ray")
STORAGE, TRACKING = "postgresql+psycopg://me:p w'\"$x@db.example.org/studies", "http://mlflow.example.org:5000"


def test_every_task_runs_the_same_worker_as_it_was_given(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    code, told = watched(tasks(stand_in, tmp_path, STORAGE, TRACKING), 3)
    words = ["worker", "--study", "a 'study'", "--home", str(tmp_path / "home dir"), "--tracking-uri", TRACKING]
    assert code == 0 and [start["words"] for start in stand_in.starts] == [words] * 3
    assert told[0] == "3 workers on a Ray cluster of 2 nodes"
    seen = {(start["environment"]["GRAFTLINE_STORAGE"], start["environment"]["GRAFTLINE_THREADS"]) for start in stand_in.starts}
    assert seen == {(STORAGE, "1")}


def test_two_workers_share_a_gpu_and_the_third_waits_for_one(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "wait", "wait", 0)
    executor = tasks(stand_in, tmp_path, gpus=0.5)
    assert "it has room for 2 at a time, the others wait" in executor.start(3)
    stand_in.wait_for(2)
    assert [start["environment"]["CUDA_VISIBLE_DEVICES"] for start in stand_in.starts] == ["0", "0"]
    assert len(stand_in.starts) == 2
    os.kill(stand_in.starts[0]["pid"], signal.SIGKILL)
    stand_in.wait_for(3)
    executor.stop()


def test_workers_on_a_ray_of_this_machine_end_in_an_orderly_way_with_who_started_it(tmp_path: Path) -> None:
    """SQLite does there: it is one node."""
    stand_in = StandIn(tmp_path, "wait")
    arguments = ["ray", str(tmp_path), str(stand_in.program), "1", "sqlite:////x/optuna.db", '{"address": "local"}']
    with subprocess.Popen([sys.executable, "-c", PARENT, *arguments]) as parent:
        stand_in.wait_for(1)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(90) == 75
    assert stand_in.starts[0]["told"] and not is_alive(stand_in.starts[0]["pid"])


def test_sqlite_is_refused_on_more_than_one_node(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    with pytest.raises(BadStorage, match="ray with 2 nodes"):
        tasks(stand_in, tmp_path, "sqlite:////shared/optuna.db").start(1)
    assert stand_in.starts == []


def test_a_share_above_one_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCluster, match="gpus is 1.5"):
        tasks(StandIn(tmp_path), tmp_path, gpus=1.5)
