"""Workers as a Slurm array: a script for sbatch, whose tasks come back after a preemption or at their time limit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from adapters.whole_file import write_whole
from registry.database_url import has_secret
from registry.tracking import TRACKING_VARIABLE
from tuning.executors.executor import STORAGE_VARIABLE, Executor, Launch, WorkerState
from tuning.executors.reach import require_many_hosts
from tuning.executors.scheduler import ran
from tuning.executors.settings import SlurmSettings

# Slurm tells steps, not the script: the worker ends its trial and leaves with 75. Only a task that still runs is put back: one
# that was cancelled is not to come, and one that Slurm requeued comes anyway. 128 and more is a death.
_SCRIPT = """\
#!/usr/bin/env bash
{directives}

trap : TERM  # the step's own end is awaited
{setup}
set -u  # not before: what sites have one source may use variables that are not set
{variables}
export GRAFTLINE_THREADS="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"

code=0
srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" {command} || code=$?
echo "task $SLURM_ARRAY_TASK_ID: the worker ended with $code"
if [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; then
    task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    state="$(squeue --noheader --jobs="$task" --format=%T)"
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ] && [ "$state" = RUNNING ]; then
        scontrol requeue "$task"
    fi
fi
exit "$code"
"""


class Slurm:
    """Writes `workers.sbatch` beside the study; with `submit` sbatch takes it. The array is Slurm's to watch."""

    def __init__(self, launch: Launch, settings: SlurmSettings) -> None:
        require_many_hosts(launch.command, "slurm")
        self._launch = launch
        self._settings = settings

    @classmethod
    def of(cls, launch: Launch, values: Mapping[str, object]) -> Self:
        return cls(launch, SlurmSettings.of(values))

    @property
    def file(self) -> Path:
        return self._launch.directory / "workers.sbatch"

    def start(self, num_workers: int) -> str:
        write_whole(self.file, self.script(num_workers))
        words = ["sbatch", "--parsable", f"--chdir={self.file.parent}", str(self.file)]
        if not self._launch.submit:
            needed = "".join(f"export {name}=...   # it holds a password\n" for name in self._secret_variables())
            return f"{num_workers} workers as a Slurm array: {self.file}\n{needed}{shlex.join(words)}"
        variables = {name: url for name, url in self._urls().items() if url is not None}
        job = ran(words, variables).partition(";")[0]
        return f"{num_workers} workers are Slurm's job {job}, logs in {self.file.parent}; `scancel {job}` ends them"

    def poll(self) -> tuple[WorkerState, ...]:
        return ()

    def stop(self) -> None:
        pass

    def script(self, num_workers: int) -> str:
        """For sbatch, run in the study's directory. A URL with a password is not in it, but read where it runs."""
        secret, variables = self._secret_variables(), []
        for name, url in self._urls().items():
            if name in secret:
                variables.append(f': "${{{name}:?holds the URL with its password: export it before sbatch}}"')
            elif url is not None:
                variables.append(f"export {name}={shlex.quote(url)}")
        return _SCRIPT.format(
            directives="\n".join(f"#SBATCH {option}" for option in self._options(num_workers)),
            setup="\n".join(self._settings.setup),
            variables="\n".join(variables),
            command=shlex.join(self._launch.command.words()),
            max_restarts=self._settings.max_restarts,
        )

    def _options(self, num_workers: int) -> list[str]:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self._launch.command.study)
        settings = self._settings
        options = [
            f"--job-name=graftline-{name}",
            f"--array=0-{num_workers - 1}",
            "--ntasks=1",
            f"--cpus-per-task={settings.cpus}",
            f"--time={settings.time_limit}",
            "--requeue",
            "--open-mode=append",
            "--signal=TERM@120",
            "--output=slurm-%A_%a.log",
        ]
        options += [f"--gpus-per-task={settings.gpus}"] if settings.gpus else []
        options += [f"--mem={settings.memory}"] if settings.memory else []
        options += [f"--partition={settings.partition}"] if settings.partition else []
        return [*options, *settings.options]

    def _urls(self) -> dict[str, str | None]:
        return {STORAGE_VARIABLE: self._launch.command.storage, TRACKING_VARIABLE: self._launch.command.tracking_uri}

    def _secret_variables(self) -> list[str]:
        return [name for name, url in self._urls().items() if has_secret(url)]


if TYPE_CHECKING:
    _: Executor = Slurm.of(..., ...)  # type: ignore[arg-type]
