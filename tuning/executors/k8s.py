"""Workers as an indexed Job of Kubernetes: a manifest for kubectl, whose pods come back after a preemption."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from adapters.whole_file import write_whole
from registry.database_url import has_secret
from registry.tracking import TRACKING_VARIABLE
from tuning.executors.executor import (
    REFUSED,
    START_AGAIN,
    STOPPED,
    STORAGE_VARIABLE,
    Executor,
    Launch,
    WorkerState,
)
from tuning.executors.reach import require_many_hosts
from tuning.executors.scheduler import ran
from tuning.executors.settings import K8sSettings

_HOME = "/home-volume"
_KEYS = {STORAGE_VARIABLE: "storage", TRACKING_VARIABLE: "tracking-uri"}  # of the Secret
_MAX_NAME = 40  # pods add their index and five letters, of 63


class K8s:
    """Writes `workers.job.json` beside the study; with `submit` kubectl takes it. The Job is the cluster's to watch."""

    def __init__(self, launch: Launch, settings: K8sSettings) -> None:
        require_many_hosts(launch.command, "k8s")
        self._launch = launch
        self._settings = settings

    @classmethod
    def of(cls, launch: Launch, values: Mapping[str, object]) -> Self:
        return cls(launch, K8sSettings.of(values))

    @property
    def file(self) -> Path:
        return self._launch.directory / "workers.job.json"

    @property
    def name(self) -> str:
        """The study's, as far as Kubernetes takes it; two studies never share one."""
        study = self._launch.command.study
        plain = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
        if plain != study or len(plain) > _MAX_NAME:
            plain = f"{plain[: _MAX_NAME - 9].strip('-')}-{hashlib.sha256(study.encode()).hexdigest()[:8]}".lstrip("-")
        return f"graftline-{plain}"

    def start(self, num_workers: int) -> str:
        write_whole(self.file, json.dumps(self.manifest(num_workers), indent=2) + "\n")
        create = [*self._kubectl(), "create", "-f", str(self.file)]
        if not self._launch.submit:
            return f"{num_workers} workers as a Job: {self.file}\n{self._secret_command()}{shlex.join(create)}"
        if self._secrets():
            ran([*self._kubectl(), "apply", "-f", "-"], given=json.dumps(self.secret()))
        ran(create)
        delete = shlex.join([*self._kubectl(), "delete", "job", self.name])
        return f"{num_workers} workers are the Job {self.name}; `{delete}` ends them"

    def poll(self) -> tuple[WorkerState, ...]:
        return ()

    def stop(self) -> None:
        pass

    def manifest(self, num_workers: int) -> dict[str, Any]:
        """Without any password: what holds one is read from the Secret."""
        settings = self._settings
        labels = {"app.kubernetes.io/name": "graftline", "app.kubernetes.io/component": "worker", "job": self.name}
        metadata = {"name": self.name, "labels": labels, "annotations": {"graftline/study": self._launch.command.study}}
        pod: dict[str, Any] = {
            "restartPolicy": "Never",  # a podFailurePolicy asks for it; the Job starts pods in their place
            "terminationGracePeriodSeconds": settings.grace_s,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # a Service named graftline would set GRAFTLINE_PORT
            "containers": [self._container()],
            "volumes": [{"name": "home", **self._home_volume()}],
        }
        if settings.image_pull_secret is not None:
            pod["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
        if settings.node_selector:
            pod["nodeSelector"] = settings.node_selector
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata | ({"namespace": settings.namespace} if settings.namespace else {}),
            "spec": {
                "completionMode": "Indexed",
                "completions": num_workers,
                "parallelism": num_workers,
                "backoffLimitPerIndex": settings.max_restarts,
                "podFailurePolicy": {"rules": _RULES},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }

    def _container(self) -> dict[str, Any]:
        command, settings = self._launch.command, self._settings
        resources = {"cpu": settings.cpus, "memory": settings.memory}
        gpus = {"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {}
        return {
            "name": "worker",
            "image": settings.image,
            "command": [_literal(word) for word in replace(command, home=Path(_HOME)).words()],
            "env": [*self._environment(), *_threads(settings.cpus)],
            "resources": {"requests": resources | gpus, "limits": {"memory": settings.memory} | gpus},
            "volumeMounts": [{"name": "home", "mountPath": _HOME}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }

    def _environment(self) -> list[dict[str, Any]]:
        secrets = self._secrets()
        return [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": self._secret_name, "key": _KEYS[name]}}}
            if name in secrets
            else {"name": name, "value": _literal(url)}
            for name, url in self._urls().items()
        ]

    def _home_volume(self) -> dict[str, Any]:
        claim = self._settings.home_claim
        return {"emptyDir": {}} if claim is None else {"persistentVolumeClaim": {"claimName": claim}}

    @property
    def _secret_name(self) -> str:
        return self._settings.secret or self.name

    def secret(self) -> dict[str, Any]:
        """What the manifest refers to. It goes to kubectl by stdin, and into no file."""
        metadata = {"name": self._secret_name} | ({"namespace": self._settings.namespace} if self._settings.namespace else {})
        values = {_KEYS[name]: url for name, url in self._secrets().items()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": values}

    def _secret_command(self) -> str:
        """For a shell that has the URLs in its variables; empty where nothing is secret."""
        if not (secrets := self._secrets()):
            return ""
        literals = " ".join(f'--from-literal={_KEYS[name]}="${name}"' for name in secrets)
        return f"{shlex.join([*self._kubectl(), 'create', 'secret', 'generic', self._secret_name])} {literals}\n"

    def _urls(self) -> dict[str, str]:
        urls = {STORAGE_VARIABLE: self._launch.command.storage, TRACKING_VARIABLE: self._launch.command.tracking_uri}
        return {name: url for name, url in urls.items() if url is not None}

    def _secrets(self) -> dict[str, str]:
        return {name: url for name, url in self._urls().items() if has_secret(url)}

    def _kubectl(self) -> list[str]:
        return ["kubectl", *([f"--namespace={self._settings.namespace}"] if self._settings.namespace else [])]


# In this order: a preempted pod and one that ended in an orderly way do not count; an error would come again.
_RULES: list[dict[str, Any]] = [
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "Ignore", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [START_AGAIN]}},
    {"action": "FailIndex", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [STOPPED, REFUSED]}},
]


def _literal(text: str) -> str:
    """Kubernetes would put a variable in the place of $(NAME)."""
    return text.replace("$", "$$")


def _threads(cpus: str) -> list[dict[str, str]]:
    threads = str(max(1, int(float(cpus[:-1]) / 1000) if cpus.endswith("m") else int(float(cpus))))
    return [{"name": name, "value": threads} for name in ("GRAFTLINE_THREADS", "OMP_NUM_THREADS")]


if TYPE_CHECKING:
    _: Executor = K8s.of(..., ...)  # type: ignore[arg-type]
