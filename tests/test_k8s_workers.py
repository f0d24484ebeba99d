"""Workers as a Job of Kubernetes: what the manifest says, what it does not hold, and that Kubernetes' own schema takes it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tuning.errors import BadCluster, BadStorage, NotSubmitted
from tuning.executors import EXECUTORS
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.k8s import K8s
from tuning.executors.settings import K8sSettings

OPEN = "postgresql+psycopg://me@db.example.org/studies"
SECRET = "postgresql+psycopg://me:hush$(HOME)'\"@db.example.org/studies"
TRACKING = "http://mlflow.example.org:5000"
IMAGE = "registry.example.org/graftline:1"
VERSIONS = ("1.31", "1.34", "1.37")

# Keeps what it is given; -f - is read too.
KUBECTL = """\
#!/usr/bin/env bash
number=$(ls "$FAKES" | wc -l)
printf '%s\\n' "$@" > "$FAKES/$number.args"
[[ "${!#}" == - ]] && cat > "$FAKES/$number.stdin"
exit "${KUBECTL_CODE:-0}"
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what kubectl was given, call by call."""
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    calls.mkdir()
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    monkeypatch.setenv("FAKES", str(calls))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def k8s(tmp_path: Path, storage: str = OPEN, *, study: str = "icd10", submit: bool = False, **values: object) -> K8s:
    launch = Launch(WorkerCommand(study, storage, tmp_path, TRACKING), tmp_path / "study 'dir", submit)
    return K8s(launch, K8sSettings.of({"image": IMAGE, **values}))


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = manifest["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(manifest: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(manifest)["env"]}


def as_kubernetes(text: str, variables: dict[str, str]) -> str:
    """What becomes of `$(NAME)` and `$$` in a command."""
    out, rest = "", text
    while rest:
        if rest.startswith("$$"):
            out, rest = out + "$", rest[2:]
        elif rest.startswith("$(") and rest[2:].partition(")")[0] in variables:
            name, _, rest = rest[2:].partition(")")
            out += variables[name]
        else:
            out, rest = out + rest[0], rest[1:]
    return out


def test_each_pod_runs_the_same_worker(tmp_path: Path) -> None:
    k8s(tmp_path).start(3)
    manifest = json.loads((tmp_path / "study 'dir" / "workers.job.json").read_text())
    assert manifest["spec"]["completions"] == manifest["spec"]["parallelism"] == 3
    assert manifest["spec"]["completionMode"] == "Indexed"
    assert [as_kubernetes(word, environment(manifest)) for word in container(manifest)["command"]] == [
        *("graftline", "worker", "--study", "icd10", "--storage", OPEN),
        *("--home", "/home-volume", "--tracking-uri", TRACKING),
    ]


def test_kubernetes_puts_nothing_into_the_words_of_the_study(tmp_path: Path) -> None:
    study = "a $(GRAFTLINE_STORAGE) $$ 'study'"
    manifest = k8s(tmp_path, study=study).manifest(1)
    assert as_kubernetes(container(manifest)["command"][3], environment(manifest)) == study


def test_a_password_is_in_no_file_and_in_no_text(tmp_path: Path) -> None:
    executor = k8s(tmp_path, SECRET)
    told = executor.start(2)
    assert "hush" not in executor.file.read_text() + told
    assert "--storage" not in container(executor.manifest(2))["command"]
    reference = environment(executor.manifest(2))["GRAFTLINE_STORAGE"]
    assert reference == {"secretKeyRef": {"name": "graftline-icd10", "key": "storage"}}
    assert environment(executor.manifest(2))["GRAFTLINE_TRACKING_URI"] == TRACKING


def test_what_is_told_without_submit_can_be_typed(tmp_path: Path, kubectl: Path) -> None:
    executor = k8s(tmp_path, SECRET, namespace="sweeps")
    commands = executor.start(2).split("\n", 1)[1]
    assert not list(kubectl.iterdir())
    subprocess.run(["bash", "-ec", commands], check=True, env={**os.environ, "GRAFTLINE_STORAGE": SECRET})
    secret, job = ((kubectl / name).read_text().splitlines() for name in ("0.args", "1.args"))
    assert secret == ["--namespace=sweeps", "create", "secret", "generic", "graftline-icd10", f"--from-literal=storage={SECRET}"]
    assert job == ["--namespace=sweeps", "create", "-f", str(executor.file)]


def test_submit_hands_the_secret_over_by_stdin_alone(tmp_path: Path, kubectl: Path) -> None:
    executor = k8s(tmp_path, SECRET, submit=True)
    told = executor.start(2)
    assert json.loads((kubectl / "0.stdin").read_text())["stringData"] == {"storage": SECRET}
    assert (kubectl / "2.args").read_text().splitlines() == ["create", "-f", str(executor.file)]
    assert not any("hush" in file.read_text() for file in kubectl.glob("*.args"))
    assert shlex.join(["kubectl", "delete", "job", "graftline-icd10"]) in told


def test_without_a_password_there_is_no_secret(tmp_path: Path, kubectl: Path) -> None:
    k8s(tmp_path, submit=True).start(2)
    assert [file.name for file in kubectl.iterdir()] == ["0.args"]


def test_a_preemption_does_not_count_and_an_error_is_not_tried_again(tmp_path: Path) -> None:
    spec = k8s(tmp_path, max_restarts=5).manifest(2)["spec"]
    assert spec["backoffLimitPerIndex"] == 5
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ["evicted"])
    }
    assert actions == {"evicted": "Ignore", 75: "Ignore", 1: "FailIndex", 2: "FailIndex"}


def test_pods_take_what_was_asked_for(tmp_path: Path) -> None:
    values = {"gpus": 2, "cpus": "3500m", "memory": "32Gi", "home_claim": "sweeps", "node_selector": {"pool": "a100"}}
    manifest = k8s(tmp_path, **values).manifest(1)
    pod = manifest["spec"]["template"]["spec"]
    assert container(manifest)["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": "2"}
    assert container(manifest)["resources"]["requests"]["cpu"] == "3500m"
    assert environment(manifest)["GRAFTLINE_THREADS"] == environment(manifest)["OMP_NUM_THREADS"] == "3"
    assert pod["volumes"] == [{"name": "home", "persistentVolumeClaim": {"claimName": "sweeps"}}]
    assert pod["nodeSelector"] == {"pool": "a100"}


@pytest.mark.parametrize("study", ["icd10", "ICD 10", "icd_10", "9", "é", "a" * 200, "-x-"])
def test_every_study_has_a_name_that_kubernetes_takes(tmp_path: Path, study: str) -> None:
    name = k8s(tmp_path, study=study).name
    assert len(name) <= 51 and all(part.isalnum() and part.isascii() for part in name.split("-")) and name == name.lower()


def test_two_studies_never_share_a_job(tmp_path: Path) -> None:
    studies = ["icd10", "ICD10", "icd-10", "icd 10", "icd_10", "a" * 100, "a" * 101]
    assert len({k8s(tmp_path, study=study).name for study in studies}) == len(studies)


def test_sqlite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadStorage):
        k8s(tmp_path, "sqlite:////home-volume/optuna.db").start(1)
    assert not (tmp_path / "study 'dir").exists()


def test_an_image_is_asked_for(tmp_path: Path) -> None:
    launch = Launch(WorkerCommand("icd10", OPEN, tmp_path, TRACKING), tmp_path)
    with pytest.raises(BadCluster, match="'image' is missing"):
        EXECUTORS["k8s"](launch, {})


def test_what_kubectl_refuses_is_told(tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECTL_CODE", "1")
    with pytest.raises(NotSubmitted, match="kubectl took no job"):
        k8s(tmp_path, submit=True).start(1)


def manifests(tmp_path: Path) -> list[dict[str, Any]]:
    full = {"gpus": 1, "home_claim": "sweeps", "namespace": "ml", "image_pull_secret": "hub", "node_selector": {"pool": "a100"}}
    secret = k8s(tmp_path, SECRET, study="A 'study'", **full)
    return [k8s(tmp_path).manifest(2), secret.manifest(8), secret.secret()]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_of_kubernetes_takes_the_manifest(tmp_path: Path, version: str) -> None:
    schema = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(tmp_path):
        schema.validate(manifest, version, strict=True)


def _wrong_kind_of_count(spec: dict[str, Any]) -> None:
    spec["completions"] = "2"


def _unknown_key(spec: dict[str, Any]) -> None:
    spec["completion"] = 2


def _no_containers(spec: dict[str, Any]) -> None:
    del spec["template"]["spec"]["containers"]


def _number_for_a_text(spec: dict[str, Any]) -> None:
    spec["template"]["spec"]["containers"][0]["env"][0]["value"] = 1


def _rule_without_action(spec: dict[str, Any]) -> None:
    spec["podFailurePolicy"] = {"rules": [{"onExitCodes": {"operator": "In", "values": [75]}}]}


DAMAGES = (_wrong_kind_of_count, _unknown_key, _no_containers, _number_for_a_text, _rule_without_action)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_schema_of_kubernetes_refuses_a_damaged_manifest(tmp_path: Path, damage: Any) -> None:
    schema = pytest.importorskip("kubernetes_validate")
    manifest = deepcopy(k8s(tmp_path).manifest(2))
    damage(manifest["spec"])
    with pytest.raises(schema.ValidationError):
        schema.validate(manifest, VERSIONS[-1], strict=True)
