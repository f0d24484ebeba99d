"""Workers as tasks of a real Ray: two nodes on this machine, the first with one GPU that it only believes to have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import StandIn, until
from test_isolation import is_alive

from tuning.errors import BadCluster, BadStorage
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.ray_tasks import RayTasks
from tuning.executors.settings import RaySettings
from tuning.executors.watch import watch

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
STORAGE, TRACKING = "postgresql+psycopg://me:p w'\"$x@db.example.org/studies", "http://mlflow.example.org:5000"


@pytest.fixture(scope="module", autouse=True)
def _nodes() -> Iterator[None]:
    from ray.cluster_utils import Cluster

    # Its processes import what this one does; with their usual niceness of 15 a busy machine would let workers wait for ever.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        monkeypatch.undo()


def tasks(stand_in: StandIn, folder: Path, storage: str = STORAGE, **values: object) -> RayTasks:
    command = WorkerCommand("a 'study'", storage, folder / "home dir", TRACKING, (str(stand_in.program),))
    return RayTasks(Launch(command, folder), RaySettings.of({"grace_s": 30, **values}))


def watched(executor: RayTasks, num_workers: int) -> tuple[int, list[str]]:
    told: list[str] = []
    return watch(executor, num_workers, told.append, poll_s=0.1), told


def test_every_task_runs_the_same_worker_as_it_was_given(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    code, told = watched(tasks(stand_in, tmp_path), 3)
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


def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, -signal.SIGKILL, 0)
    assert watched(tasks(stand_in, tmp_path), 1)[0] == 0
    assert len(stand_in.starts) == 2


def test_a_worker_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 139)
    code, told = watched(tasks(stand_in, tmp_path, max_restarts=1), 1)
    assert code == 1 and len(stand_in.starts) == 2
    assert "given up" in told[-1] and "exit code 139" in told[-1]


def test_a_preempted_worker_comes_back_however_often(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 75, 75, 0)
    assert watched(tasks(stand_in, tmp_path, max_restarts=0), 1)[0] == 0
    assert len(stand_in.starts) == 3


def test_a_worker_that_stopped_on_an_error_is_not_started_again(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 1)
    assert watched(tasks(stand_in, tmp_path), 1)[0] == 1
    assert len(stand_in.starts) == 1


def test_stop_tells_every_worker_to_end(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "wait")
    executor = tasks(stand_in, tmp_path)
    executor.start(2)
    stand_in.wait_for(2)
    executor.stop()
    until(lambda: all(start["told"] and not is_alive(start["pid"]) for start in stand_in.starts))
    assert {state.phase for state in executor.poll()} == {"ended"}


PARENT = """
import sys
from pathlib import Path
from tuning.executors import EXECUTORS
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.watch import watch

command = WorkerCommand("study", "sqlite:////x/optuna.db", program=(sys.argv[2],))
sys.exit(watch(EXECUTORS["ray"](Launch(command, Path(sys.argv[1])), {"address": "local"}), 1, print))
"""


def test_workers_on_a_ray_of_this_machine_end_in_an_orderly_way_with_who_started_it(tmp_path: Path) -> None:
    """SQLite does there: it is one node."""
    stand_in = StandIn(tmp_path, "wait")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), str(stand_in.program)]) as parent:
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
