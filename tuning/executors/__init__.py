"""What starts `graftline worker` N times, by name: on this machine, or through a scheduler."""

from collections.abc import Callable, Mapping

from tuning.executors.executor import Executor, Launch
from tuning.executors.k8s import K8s
from tuning.executors.local import Local
from tuning.executors.ray_tasks import RayTasks
from tuning.executors.slurm import Slurm

EXECUTORS: dict[str, Callable[[Launch, Mapping[str, object]], Executor]] = {
    "local": Local.of,
    "slurm": Slurm.of,
    "k8s": K8s.of,
    "ray": RayTasks.of,
}
