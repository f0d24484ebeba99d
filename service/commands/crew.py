"""`graftline tune --workers`: the study is made here, and workers that an executor starts run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuning.errors import BadCluster
from tuning.executors import EXECUTORS
from tuning.executors.executor import Executor, Launch, WorkerCommand
from tuning.executors.settings import cluster_settings
from tuning.executors.watch import watch
from tuning.study import Sweep


@dataclass(frozen=True)
class Crew:
    """How many workers, what starts them, what it is told of the cluster, and whether it also calls the scheduler."""

    num_workers: int
    executor: str = "local"
    cluster: Path | None = None
    submit: bool = False


def executor_of(crew: Crew, sweep: Sweep) -> Executor:
    """Raises TuningError for what it cannot start, before there is a study."""
    if crew.executor not in EXECUTORS:
        raise BadCluster(f"What starts workers is one of {', '.join(EXECUTORS)}, but got {crew.executor!r}. Correct --executor.")
    if crew.submit and crew.executor not in ("slurm", "k8s"):
        raise BadCluster(
            f"--submit calls sbatch or kubectl, but --executor {crew.executor} starts its workers itself. Leave it out."
        )
    # Elsewhere a store in this home would be another one.
    uri = sweep.tracking.uri if crew.executor in ("local", "ray") or not sweep.tracking.uri.startswith("sqlite:") else None
    command = WorkerCommand(sweep.recipe.name, sweep.storage_url, sweep.home, uri)
    launch = Launch(command, sweep.directory, crew.submit)
    return EXECUTORS[crew.executor](launch, cluster_settings(crew.cluster, crew.executor))


def run_by(executor: Executor, crew: Crew, was_stopped: Callable[[], bool], quiet: bool) -> tuple[int, bool]:
    """What `watch` returned, and whether a scheduler took over: then nothing is finished yet."""
    out = sys.stderr if quiet else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    code = watch(executor, crew.num_workers, say, was_stopped=was_stopped)
    return code, not executor.poll()
