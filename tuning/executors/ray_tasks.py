"""Workers as tasks of Ray: each runs one as a process of its node, with the cores and the share of a GPU that Ray gives it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from tuning.errors import BadCluster
from tuning.executors.backoff import Backoff
from tuning.executors.executor import DONE, FINAL, START_AGAIN, Executor, Launch, Phase, WorkerCommand, WorkerState, program_here
from tuning.executors.process import end_processes, start_process, threads_environment
from tuning.executors.reach import require_many_hosts
from tuning.executors.settings import RaySettings

_FIRST_S = 1.0  # before a worker that was preempted is started again; then longer
_TOLD_S = 10.0  # in which a node hears that a task is cancelled


class WorkerDied(RuntimeError):
    """Ray runs the task again, on any node."""


@dataclass
class _Task:
    number: int
    reference: Any
    phase: Phase = "runs"
    exit_code: int | None = None
    restarts: int = 0
    reason: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(0, _FIRST_S))
    started_s: float = field(default_factory=time.monotonic)
    due_s: float = 0.0

    @property
    def state(self) -> WorkerState:
        return WorkerState(self.number, self.phase, self.exit_code, self.restarts, self.reason)


class RayTasks:
    """Joins a cluster, or starts a Ray of this machine; Ray shows what the workers print. Its nodes need Graftline installed."""

    def __init__(self, launch: Launch, settings: RaySettings) -> None:
        if settings.gpus > 1 and not settings.gpus.is_integer():
            raise BadCluster(f"Ray gives a share of one GPU, or whole ones, but gpus is {settings.gpus}. Round it under [ray].")
        self._command = launch.command
        self._settings = settings
        self._tasks: list[_Task] = []
        self._is_ours = False

    @classmethod
    def of(cls, launch: Launch, values: Mapping[str, object]) -> Self:
        return cls(launch, RaySettings.of(values))

    def start(self, num_workers: int) -> str:
        ray = _ray()
        if not ray.is_initialized():
            with _own_end():
                ray.init(address=self._settings.address)
            self._is_ours = True
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1 or (self._settings.address or "").startswith("ray://"):
            require_many_hosts(
                self._command, f"ray with {len(nodes)} {'nodes' if len(nodes) > 1 else 'node, on another machine'}"
            )
        self._tasks = [_Task(number, self._submitted()) for number in range(num_workers)]
        room = self._room(ray.cluster_resources())
        waits = "" if room >= num_workers else f"; it has room for {room} at a time, the others wait"
        return f"{num_workers} workers on a Ray cluster of {len(nodes)} {'nodes' if len(nodes) > 1 else 'node'}{waits}"

    def poll(self) -> tuple[WorkerState, ...]:
        ray = _ray()
        for task in self._tasks:
            if task.phase == "waits" and time.monotonic() >= task.due_s:
                task.phase, task.reference, task.started_s = "runs", self._submitted(), time.monotonic()
                task.restarts += 1
            if task.phase != "runs" or not ray.wait([task.reference], timeout=0)[0]:
                continue
            try:
                task.exit_code = ray.get(task.reference)
            except ray.exceptions.RayError as error:
                task.phase, task.reason = "given up", str(error).strip().splitlines()[-1]
                continue
            if task.exit_code == START_AGAIN:
                wait_s = task.backoff.wait_s(START_AGAIN, time.monotonic() - task.started_s)
                assert wait_s is not None
                task.phase, task.due_s = "waits", time.monotonic() + wait_s
            else:
                task.phase = "done" if task.exit_code == DONE else "stopped"
        return tuple(task.state for task in self._tasks)

    def stop(self) -> None:
        ray = _ray()
        left = [task.reference for task in self._tasks if task.phase == "runs"]
        try:
            for reference in left:
                ray.cancel(reference)
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=self._settings.grace_s + _TOLD_S)
        finally:
            for reference in left:  # not one that has ended: Ray 2.60 aborts where its reply is still on the way
                ray.cancel(reference, force=True)
            for task in self._tasks:
                task.phase = task.phase if task.state.is_over else "ended"
            if self._is_ours:
                ray.shutdown()

    def _submitted(self) -> Any:
        settings = self._settings
        task = (
            _ray()
            .remote(run_worker)
            .options(
                num_cpus=settings.cpus,
                num_gpus=settings.gpus,
                max_retries=settings.max_restarts,
                retry_exceptions=[WorkerDied],
                name=f"graftline worker {self._command.study}",
            )
        )
        return task.remote(self._command, settings.cpus, settings.grace_s)

    def _room(self, resources: Mapping[str, float]) -> int:
        """Workers that run at the same time."""
        asked = {"CPU": float(self._settings.cpus), "GPU": self._settings.gpus}
        return min(int(resources.get(name, 0.0) / share) for name, share in asked.items() if share)


def run_worker(command: WorkerCommand, threads: int, grace_s: float) -> int:
    """On a node, in the main thread of Ray's process: the worker's exit code. Raises WorkerDied for any but its own.

    Ray cancels by a KeyboardInterrupt, which only comes between two calls: hence the short waits.
    """
    words = replace(command, program=command.program or program_here()).words()
    process = start_process(words, {**command.environment(), **threads_environment(threads)})
    try:
        while True:
            try:
                code = process.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        end_processes([process], grace_s)
    if code not in (*FINAL, START_AGAIN):
        raise WorkerDied(f"The worker ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}.")
    return code


@contextmanager
def _own_end() -> Iterator[None]:
    """Ray would have SIGTERM kill the workers of a Ray that it starts here: who waits for them ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BadCluster("--executor ray needs Ray, which is not installed here: pip install 'graftline[ray]'.") from error
    return ray


if TYPE_CHECKING:
    _: Executor = RayTasks.of(..., ...)  # type: ignore[arg-type]
