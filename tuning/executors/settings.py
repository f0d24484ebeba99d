"""What an executor may be told: one TOML file with a table for each, such as `[slurm]`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError

from adapters.spec import Spec
from tuning.errors import BadCluster
from tuning.faults import in_one_sentence

# sbatch has rules of its own for quotes and blanks in its comments.
Plain = Annotated[str, StringConstraints(pattern=r"^[^\s\"'\\#]+$")]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kKMGTP]i?)?$")]


class ExecutorSettings(Spec):
    """Of one executor; all have a usual value unless said otherwise."""

    @classmethod
    def of(cls, values: object) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BadCluster(in_one_sentence(error, of="cluster file")) from error


class LocalSettings(ExecutorSettings):
    """`[local]`"""

    gpus: tuple[str, ...] | None = None
    """As in CUDA_VISIBLE_DEVICES; empty: the CPU; None: all that this process sees, else the CPU."""
    workers_per_gpu: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    """Of each worker. None: 1 on the CPU, and an equal share of the cores beside a GPU."""
    max_restarts: int = Field(default=3, ge=0)
    """Of a worker that dies, in a row: one that ran for ten minutes begins anew."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Seconds before the first restart; doubled for each that follows, up to a minute."""
    grace_s: float = Field(default=60.0, ge=0)
    """Seconds that a worker has to end after SIGTERM."""


class SlurmSettings(ExecutorSettings):
    """`[slurm]`"""

    cpus: int = Field(default=4, ge=1)
    """Of each worker."""
    gpus: int = Field(default=0, ge=0)
    memory: Plain | None = None
    """As in --mem, such as 32G."""
    time_limit: Plain = "24:00:00"
    partition: Plain | None = None
    options: tuple[Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z-]*(=[^\s\"'\\#]+)?$")], ...] = ()
    """More options of sbatch, such as "--account=team"."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker starts, such as "module load cuda"; they stand in the script as they are."""
    max_restarts: int = Field(default=20, ge=0)
    """How often a task comes back that ended by a death or at its time limit."""


class K8sSettings(ExecutorSettings):
    """`[k8s]`"""

    image: Annotated[str, StringConstraints(pattern=r"^[^\s]+$")]
    """Has `graftline` on its PATH. There is no usual one."""
    namespace: Label | None = None
    cpus: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?m?$")] = "4"
    memory: Quantity = "16Gi"
    gpus: int = Field(default=0, ge=0)
    home_claim: Label | None = None
    """A PersistentVolumeClaim (ReadWriteMany) that all workers have as their home. None: each has an empty one, lost with it."""
    secret: Label | None = None
    """The name of the Secret with the URLs that hold a password. None: the job's own name."""
    image_pull_secret: Label | None = None
    node_selector: dict[str, str] = {}
    max_restarts: int = Field(default=3, ge=0)
    """Of a worker that dies; a preemption does not count."""
    grace_s: int = Field(default=120, ge=1)
    """Seconds that a worker has to end after SIGTERM."""


class RaySettings(ExecutorSettings):
    """`[ray]`"""

    address: str | None = None
    """Of the cluster, such as auto or ray://HOST:10001. None: $RAY_ADDRESS, else a Ray of this machine alone is started."""
    cpus: int = Field(default=1, ge=1)
    """Of each worker; its threads."""
    gpus: float = Field(default=0.0, ge=0)
    """Of each worker: 0.5 puts two on one GPU. Above 1 a whole number."""
    max_restarts: int = Field(default=3, ge=0)
    """Of a worker that dies, or whose node does."""
    grace_s: float = Field(default=60.0, ge=0)
    """Seconds that a worker has to end after it was told to."""


TABLES: dict[str, type[ExecutorSettings]] = {
    "local": LocalSettings,
    "slurm": SlurmSettings,
    "k8s": K8sSettings,
    "ray": RaySettings,
}


def cluster_settings(file: Path | None, name: str) -> dict[str, object]:
    """The table of that executor in the file; the whole file is checked. Raises BadCluster."""
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadCluster(f"A cluster file is TOML, but {file} cannot be read: {error}.") from error
    for table, values in tables.items():
        if table not in TABLES:
            raise BadCluster(f"The tables of a cluster file are {', '.join(TABLES)}, but {file} has {table!r}. Correct its name.")
        try:
            TABLES[table].of(values)
        except BadCluster as error:
            raise BadCluster(f"{file}, [{table}]: {error}") from error
    found = tables.get(name, {})
    assert isinstance(found, dict)
    return found
