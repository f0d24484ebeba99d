"""What every executor that watches its workers itself does with one that ends: on this machine, and as a task of Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn, executor_of, until, watched
from test_isolation import is_alive

from tuning.executors.executor import Executor


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Executor]:
    if request.param == "ray":
        request.getfixturevalue("ray_nodes")

    def of(stand_in: StandIn, **values: Any) -> Executor:
        return executor_of(request.param, stand_in, tmp_path, **values)

    return of


def test_a_worker_that_is_killed_is_started_again(made: Callable[..., Executor], tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, -signal.SIGKILL, 0)
    code, told = watched(made(stand_in), 1)
    assert code == 0 and len(stand_in.starts) == 2
    assert told[-1] == "worker 0 found the study complete"


def test_a_worker_that_dies_again_and_again_is_given_up(made: Callable[..., Executor], tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 139)
    code, told = watched(made(stand_in, max_restarts=1), 1)
    assert code == 1 and len(stand_in.starts) == 2
    assert "died too often" in told[-1] and "exit code 139" in told[-1]


@pytest.mark.parametrize("code", [1, 2])
def test_a_worker_that_stopped_on_an_error_is_not_started_again(made: Callable[..., Executor], tmp_path: Path, code: int) -> None:
    stand_in = StandIn(tmp_path, code)
    ended, told = watched(made(stand_in), 1)
    assert ended == 1 and len(stand_in.starts) == 1 and "stopped on an error" in told[-1]


def test_a_preempted_worker_comes_back_however_often(made: Callable[..., Executor], tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 75, 75, 75, 0)
    assert watched(made(stand_in, max_restarts=0), 1)[0] == 0
    assert len(stand_in.starts) == 4


def test_stop_tells_every_worker_to_end(made: Callable[..., Executor], tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "wait")
    started = made(stand_in)
    started.start(2)
    stand_in.wait_for(2)
    started.stop()
    until(lambda: all(start["told"] and not is_alive(start["pid"]) for start in stand_in.starts))
    assert {state.phase for state in started.poll()} == {"ended"}
