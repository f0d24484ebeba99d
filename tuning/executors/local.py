"""Workers on this machine: one a GPU, or as many as asked for on the CPU with one thread each."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tuning.errors import BadCluster
from tuning.executors.backoff import Backoff
from tuning.executors.executor import DONE, FINAL, Executor, Launch, Phase, WorkerState, program_here
from tuning.executors.process import end_processes, start_process, threads_environment
from tuning.executors.settings import LocalSettings


@dataclass
class _Place:
    """One worker: its processes, one after the other."""

    number: int
    environment: dict[str, str]
    log: Path
    backoff: Backoff
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    due_s: float = 0.0
    restarts: int = 0
    phase: Phase = "waits"
    exit_code: int | None = None

    @property
    def state(self) -> WorkerState:
        reason = "" if self.phase in ("runs", "done") else f"see {self.log}"
        return WorkerState(self.number, self.phase, self.exit_code, self.restarts, reason)


class Local:
    """Processes of this machine, each with a log of its own; the thread that starts them polls until all are over."""

    def __init__(self, launch: Launch, settings: LocalSettings) -> None:
        self._command = replace(launch.command, program=launch.command.program or program_here())
        self._logs = launch.directory / "logs"
        self._settings = settings
        self._places: list[_Place] = []

    @classmethod
    def of(cls, launch: Launch, values: Mapping[str, object]) -> Self:
        return cls(launch, LocalSettings.of(values))

    def start(self, num_workers: int) -> str:
        environments = self._environments(num_workers)
        self._logs.mkdir(parents=True, exist_ok=True)
        settings = self._settings
        self._places = [
            _Place(number, environment, self._logs / f"worker-{number}.log", Backoff(settings.max_restarts, settings.backoff_s))
            for number, environment in enumerate(environments)
        ]
        for place in self._places:
            self._run(place)
        return f"{num_workers} {'workers' if num_workers > 1 else 'worker'} started; what each prints: {self._logs}/worker-*.log"

    def poll(self) -> tuple[WorkerState, ...]:
        for place in self._places:
            if place.phase == "runs" and place.process is not None and (code := place.process.poll()) is not None:
                self._note_end(place, code)
            if place.phase == "waits" and time.monotonic() >= place.due_s:
                place.restarts += 1
                self._run(place)
        return tuple(place.state for place in self._places)

    def stop(self) -> None:
        end_processes([place.process for place in self._places if place.process is not None], self._settings.grace_s)
        for place in self._places:
            if not place.state.is_over:
                place.exit_code = place.process.poll() if place.process is not None else None
                place.phase = "done" if place.exit_code == DONE else "ended"

    def _run(self, place: _Place) -> None:
        with place.log.open("ab") as log:
            place.process = start_process(self._command.words(), {**self._command.environment(), **place.environment}, log)
        place.started_s, place.phase = time.monotonic(), "runs"

    def _note_end(self, place: _Place, code: int) -> None:
        """What becomes of a worker whose process ended."""
        place.exit_code = code
        if code in FINAL:
            place.phase = "done" if code == DONE else "stopped"
            return
        wait_s = place.backoff.wait_s(code, time.monotonic() - place.started_s)
        if wait_s is None:
            place.phase = "given up"
        else:
            place.due_s, place.phase = time.monotonic() + wait_s, "waits"

    def _environments(self, num_workers: int) -> list[dict[str, str]]:
        """What sets one worker apart from the others."""
        gpus, each = self._settings.gpus, self._settings.workers_per_gpu
        gpus = gpu_names(os.environ.get("CUDA_VISIBLE_DEVICES"), _num_gpus()) if gpus is None else gpus
        if not gpus:
            return [threads_environment(self._settings.threads or 1)] * num_workers
        if num_workers > len(gpus) * each:
            raise BadCluster(
                f"A GPU takes {each} {'worker' if each == 1 else 'workers'}, and there are {len(gpus)} here, but {num_workers} "
                "workers were asked for. Ask for fewer, or put more on each: workers_per_gpu under [local] in the cluster file."
            )
        from tuning.isolation import available_threads  # it imports what a trial needs

        threads = self._settings.threads or max(1, available_threads() // num_workers)
        return [
            {**threads_environment(threads), "CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(num_workers)
        ]


def gpu_names(visible: str | None, num_seen: int) -> tuple[str, ...]:
    """Under which a child sees what this process does: those of CUDA_VISIBLE_DEVICES, None where it is not set."""
    if visible is None:
        return tuple(map(str, range(num_seen)))
    return tuple(name.strip() for name in visible.split(",") if name.strip())[:num_seen]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


if TYPE_CHECKING:
    _: Executor = Local.of(..., ...)  # type: ignore[arg-type]
