"""The files in deploy/: they hold together, call the command line as it is, hold no password, and their schemas take them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT, fault

from registry.tracking import Tracking
from service.scopes import TABLE
from service.settings import PREFIX, Settings, misspelt
from tuning.executors.executor import Launch, WorkerCommand
from tuning.executors.k8s import K8s
from tuning.executors.settings import cluster_settings

DEPLOY = ROOT / "deploy"
KUBERNETES, VLLM = DEPLOY / "kubernetes", DEPLOY / "kubernetes-vllm"
VERSIONS = ("1.31", "1.37")
STORAGE = "postgresql+psycopg://graftline:hush@postgres/studies"

Object = dict[str, Any]


@cache
def compose() -> Object:
    found: Object = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def named(folder: Path) -> list[Object]:
    """The objects of the files that a kustomization names in its own folder."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [found for name in listed if name.endswith(".yaml") for found in yaml.safe_load_all((folder / name).read_text())]


def job() -> Object:
    """What `graftline tune --executor k8s` writes by cluster.toml."""
    command = WorkerCommand("icd10-coding", STORAGE, Path("/home-volume"), "http://mlflow:5000")
    values = cluster_settings(KUBERNETES / "cluster.toml", "k8s")
    return K8s.of(Launch(command, Path("unused")), values).manifest(2)


def pods(objects: list[Object]) -> Iterator[Object]:
    for found in objects:
        if "template" in found.get("spec", {}):
            yield found["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[Object]:
    for pod in pods(objects):
        yield from (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))


def words_of(container: Object) -> list[str]:
    words = [*container.get("command", ()), *container.get("args", ())]
    return [str(word) for word in words]


EVERY = [*named(KUBERNETES), yaml.safe_load((VLLM / "serve.yaml").read_text()), job()]


def test_every_command_is_one_of_the_command_line() -> None:
    called = [words_of(container) for container in containers(EVERY)]
    called += [service.get("command", []) for service in compose()["services"].values()]
    called += [json.loads(found) for found in re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)]
    ours = [words[1:] for words in called if words[:1] == ["graftline"]]
    assert len(ours) > 6 and not [(words, wrong) for words in ours if (wrong := fault(words))]


def test_every_variable_of_ours_is_read() -> None:
    given = {entry["name"] for container in containers(EVERY) for entry in container.get("env", ())}
    given |= {name for service in compose()["services"].values() for name in service.get("environment", {})}
    given |= set(re.findall(r"\b(GRAFTLINE_\w+)=", (DEPLOY / "Dockerfile").read_text()))
    assert {f"{PREFIX}TRACKING_URI", f"{PREFIX}STORAGE"} <= given and not misspelt(dict.fromkeys(given, ""))


def test_every_command_keeps_its_releases_where_the_service_reads_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {service["environment"]["GRAFTLINE_TRACKING_URI"] for service in graftline_services()}
    given |= {e["value"] for c in containers(EVERY) for e in c.get("env", ()) if e["name"] == "GRAFTLINE_TRACKING_URI"}
    (server,) = given
    monkeypatch.setenv("GRAFTLINE_TRACKING_URI", server)
    assert Tracking.at(tmp_path).uri == Settings.from_environment(dict(os.environ)).tracking_uri == server


def test_every_probe_asks_what_the_service_answers_without_a_key() -> None:
    (serve,) = (found for found in EVERY if found["kind"] == "StatefulSet" and len(found["spec"]) > 1 and name(found) == "serve")
    (container,) = serve["spec"]["template"]["spec"]["containers"]
    asked = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {"/readyz", "/livez"} <= {rule.path for rule in TABLE if rule.scope is None}


def name(found: Object) -> str:
    return str(found["metadata"]["name"])


def test_what_is_named_in_the_cluster_is_there() -> None:
    services = {name(found) for found in EVERY if found["kind"] == "Service"}
    text = json.dumps(EVERY)
    hosts = set(re.findall(r"(?:http://|@)([a-z0-9-]+)[:/]", text))
    assert hosts == {"postgres", "s3", "mlflow"} <= services
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods(EVERY) if "metadata" in pod}
    (stores,) = (found for found in EVERY if found["kind"] == "NetworkPolicy" and name(found) == "stores")
    assert set(stores["spec"]["podSelector"]["matchExpressions"][0]["values"]) == {"postgres", "s3", "mlflow"} <= components


def test_no_service_gives_pods_a_variable_of_ours() -> None:
    # Kubernetes sets NAME_PORT of every Service in a pod that asks for service links.
    assert all(pod["spec"].get("enableServiceLinks") is False for pod in pods(EVERY) if len(pod["spec"]) > 2)
    assert not any(name(found).startswith("graftline") for found in EVERY if found["kind"] == "Service")


def test_pods_may_end_in_order() -> None:
    grace = Settings.model_fields["grace_s"].default
    (serve,) = (pod["spec"] for pod in pods(EVERY) if pod["spec"].get("terminationGracePeriodSeconds") == 60)
    wait = int(serve["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert serve["terminationGracePeriodSeconds"] > wait + grace
    assert all(service["stop_grace_period"] in ("60s", "120s") for service in graftline_services())


def graftline_services() -> list[Object]:
    return [service for service in compose()["services"].values() if service.get("command", [""])[0] == "graftline"]


def test_no_file_holds_a_password() -> None:
    for file in (file for file in DEPLOY.rglob("*") if file.is_file()):
        text = file.read_text()
        assert not re.search(r"://[^\s/@{$]+:[^\s/@{$]+@", text), file
        assert not re.search(r"(?im)^\s*(?:- )?\w*(?:password|secret_key|access_key)\w*[:=][ ]*[^\s${]", text), file
    (secret,) = {entry["valueFrom"]["secretKeyRef"]["name"] for found in named(KUBERNETES) for entry in secrets_of(found)}
    assert secret == "passwords" and "hush" not in json.dumps(job())


def secrets_of(found: Object) -> list[Object]:
    return [entry for one in containers([found]) for entry in one.get("env", ()) if "secretKeyRef" in entry.get("valueFrom", {})]


def test_a_password_would_be_found() -> None:
    assert re.search(r"://[^\s/@{$]+:[^\s/@{$]+@", STORAGE)


def test_what_compose_names_is_there() -> None:
    services, volumes = compose()["services"], compose()["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in volumes
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?\}", text))
    assert asked == set(re.findall(r"^(\w+)=$", (DEPLOY / "env.example").read_text(), re.M))
    assert set(re.findall(r"(?:http://|@)([a-z0-9-]+)[:/]", text)) - {"127"} <= services.keys()


def test_the_image_is_made_of_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied and all((ROOT / source).exists() and f"!{source}" in allowed for source in copied)


def test_workers_and_service_share_an_image_and_a_namespace() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    worker = job()
    assert worker["spec"]["template"]["spec"]["containers"][0]["image"] == f"{image['newName']}:{image['newTag']}"
    assert worker["metadata"]["namespace"] == kustomization["namespace"]


def vendored(schema: str) -> Any:
    pytest.importorskip("check_jsonschema")
    import jsonschema

    found = json.loads((files("check_jsonschema.builtin_schemas.vendor") / schema).read_text())
    return jsonschema.validators.validator_for(found)(found)


@pytest.mark.slow
def test_the_schema_of_compose_takes_the_file_and_refuses_damaged_ones() -> None:
    schema = vendored("compose-spec.json")
    assert not list(schema.iter_errors(compose()))
    for place, value in (("command", 3), ("restarts", "always"), ("healthcheck", {"tests": []})):
        damaged = deepcopy(compose())
        damaged["services"]["serve"][place] = value
        assert list(schema.iter_errors(damaged)), place


@pytest.mark.slow
def test_the_schema_of_issue_forms_takes_them_all() -> None:
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    for file in forms.glob("*.yml"):
        schema = vendored("github-issue-config.json" if file.stem == "config" else "github-issue-forms.json")
        assert not list(schema.iter_errors(yaml.safe_load(file.read_text()))), file.name
    assert list(vendored("github-issue-forms.json").iter_errors({"name": "x", "body": [{"type": "text"}]}))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_take_every_object(version: str) -> None:
    schema = pytest.importorskip("kubernetes_validate")
    for found in (*named(KUBERNETES), job()):
        schema.validate(found, version, strict=True)
    damaged = deepcopy(next(found for found in EVERY if found["kind"] == "Deployment"))
    damaged["spec"]["replica"] = 1
    with pytest.raises(schema.ValidationError):
        schema.validate(damaged, version, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [KUBERNETES, VLLM], ids=lambda folder: folder.name)
def test_kustomize_puts_them_together(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    schema = pytest.importorskip("kubernetes_validate")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    for found in made:
        schema.validate(found, VERSIONS[-1], strict=True)
    (serve,) = (found for found in made if found["kind"] == "StatefulSet" and name(found) == "serve")
    (container,) = serve["spec"]["template"]["spec"]["containers"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("vllm" in container["image"]) == (folder == VLLM)
    assert container["volumeMounts"][-1]["mountPath"] and len({mount["mountPath"] for mount in container["volumeMounts"]}) >= 2
