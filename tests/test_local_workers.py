"""Workers on this machine: where they compute, what becomes of one that ends, and that none outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from stand_in import PARENT, StandIn, executor_of, until, watched
from test_isolation import is_alive

from tuning.errors import BadCluster
from tuning.executors.executor import Phase, WorkerState
from tuning.executors.local import gpu_names
from tuning.executors.watch import watch

ROOT = Path(__file__).parent.parent
local = partial(executor_of, "local")
SECRET = "postgresql+psycopg://me:p w'\"$x@db.example.org/studies"


def test_every_worker_gets_the_same_command_as_it_was_given(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    code, _ = watched(local(stand_in, tmp_path), 2)
    assert code == 0
    words = [
        "worker",
        "--study",
        "a 'study'",
        "--storage",
        "postgresql+psycopg://me@db.example.org/stu 'dies'",
        "--home",
        str(tmp_path / "home dir"),
    ]
    assert [start["words"] for start in stand_in.starts] == [words, words]


def test_a_password_is_in_no_words_that_everybody_can_read(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    watched(local(stand_in, tmp_path, SECRET), 1)
    (start,) = stand_in.starts
    assert start["environment"]["GRAFTLINE_STORAGE"] == SECRET and "--storage" not in start["words"]


def test_on_the_cpu_a_worker_has_one_thread(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    watched(local(stand_in, tmp_path), 2)
    for start in stand_in.starts:
        assert start["environment"]["GRAFTLINE_THREADS"] == start["environment"]["OMP_NUM_THREADS"] == "1"


def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    watched(local(stand_in, tmp_path, gpus=("3", "5")), 2)
    assert sorted(start["environment"]["CUDA_VISIBLE_DEVICES"] for start in stand_in.starts) == ["3", "5"]


@pytest.mark.parametrize(
    ("visible", "num_seen", "names"),
    [
        (None, 2, ("0", "1")),
        (None, 0, ()),
        ("2, 3", 2, ("2", "3")),
        ("2,3,9", 2, ("2", "3")),
        ("", 0, ()),
        ("GPU-5f,MIG-7a", 2, ("GPU-5f", "MIG-7a")),
    ],
)
def test_workers_are_given_the_gpus_that_their_parent_sees(visible: str | None, num_seen: int, names: tuple[str, ...]) -> None:
    assert gpu_names(visible, num_seen) == names


def test_two_workers_may_share_a_gpu_where_they_are_told_to(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    watched(local(stand_in, tmp_path, gpus=("3",), workers_per_gpu=2, threads=2), 2)
    seen = {
        (start["environment"]["CUDA_VISIBLE_DEVICES"], start["environment"]["GRAFTLINE_THREADS"]) for start in stand_in.starts
    }
    assert len(stand_in.starts) == 2 and seen == {("3", "2")}


def test_more_workers_than_gpus_are_refused_before_any_starts(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    with pytest.raises(BadCluster, match="there are 2 here, but 3 workers were asked for.*workers_per_gpu"):
        local(stand_in, tmp_path, gpus=("0", "1")).start(3)
    assert stand_in.starts == [] and not (tmp_path / "study dir").exists()


def test_what_a_worker_prints_is_in_its_own_log(tmp_path: Path) -> None:
    watched(local(StandIn(tmp_path), tmp_path), 2)
    logs = sorted((tmp_path / "study dir" / "logs").iterdir())
    assert [log.name for log in logs] == ["worker-0.log", "worker-1.log"]
    assert sorted(log.read_text() for log in logs) == ["stand-in 0\n", "stand-in 1\n"]


def test_a_study_is_complete_when_one_worker_says_so(tmp_path: Path) -> None:
    assert watched(local(StandIn(tmp_path, 1, 0), tmp_path), 2)[0] == 0


def test_a_worker_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "deaf")
    workers = local(stand_in, tmp_path, grace_s=0.1)
    workers.start(1)
    stand_in.wait_for(1)
    workers.stop()
    (start,) = stand_in.starts
    assert not start["told"] and not is_alive(start["pid"]) and workers.poll()[0].exit_code == -signal.SIGKILL


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_in_an_orderly_way_with_who_started_them(tmp_path: Path, number: int, ended: int) -> None:
    stand_in = StandIn(tmp_path, "wait")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = ["local", str(tmp_path), str(stand_in.program), "2", "sqlite:///x", '{"gpus": []}']
    with subprocess.Popen([sys.executable, "-c", PARENT, *arguments], env=environment) as parent:
        stand_in.wait_for(2)
        parent.send_signal(number)
        assert parent.wait(60) == ended
    until(lambda: all(start["told"] and not is_alive(start["pid"]) for start in stand_in.starts))


class Scripted:
    """An executor whose workers pass through the given phases."""

    def __init__(self, *phases: tuple[Phase, ...]) -> None:
        self._phases = list(phases)
        self.stopped = False

    def start(self, num_workers: int) -> str:
        return f"{num_workers} started"

    def poll(self) -> tuple[WorkerState, ...]:
        return tuple(WorkerState(number, phase) for number, phase in enumerate(self._phases.pop(0)))

    def stop(self) -> None:
        self.stopped = True


def test_each_change_is_told_once() -> None:
    executor = Scripted(("runs", "runs"), ("runs", "waits"), ("runs", "waits"), ("done", "runs"), ("done", "done"))
    code, told = watched(executor, 2)
    assert code == 0 and executor.stopped
    assert told == [
        "2 started",
        "worker 1 died (no exit code); it is started again",
        "worker 0 found the study complete",
        "worker 1 started again (0)",
        "worker 1 found the study complete",
    ]


def test_a_worker_of_a_study_that_was_stopped_did_not_find_it_complete() -> None:
    told: list[str] = []
    executor = Scripted(("runs", "runs"), ("done", "given up"))
    assert watch(executor, 2, told.append, 0.0, was_stopped=lambda: True) == 0
    assert told[1] == "worker 0 ended, since the study was stopped" and told[2].startswith("worker 1 died too often")


def test_what_a_scheduler_watches_is_not_waited_for() -> None:
    assert watched(Scripted(()), 2) == (0, ["2 started"])
