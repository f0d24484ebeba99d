"""Bentos: the service with its backbone and the promoted releases, in one folder that runs without a registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from adapters.backbone import Backbone
from service.catalogue import Catalogue
from service.frozen import write_frozen
from service.serve import SERVICE
from service.settings import BUNDLED, Settings
from service.startup import open_parts

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("adapters", "engine", "registry", "service")
_FILES = ("evaluation/__init__.py", "evaluation/staircase.py", "evaluation/task.py")  # what X-rays are read by


class BuildFailed(RuntimeError):
    """`bentoml build` ended with an error."""


def build(settings: Settings, store: Path | None = None) -> Path:
    """Builds a Bento of the backbone and every served champion; returns its directory in the Bento store.

    `store` is a BENTOML_HOME of its own; by default, the one in the home directory that `graftline serve` uses.
    Run it with `bentoml serve DIRECTORY`.
    """
    backbone, catalogue = open_parts(settings.model_copy(update={"device": "cpu"}))
    store = (store or settings.home / "bentoml").expanduser().absolute()
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="graftline-bento-") as scratch:
        stage = Path(scratch)
        write_stage(stage, backbone, catalogue)
        return _bentoml_build(stage, store)


def write_stage(stage: Path, backbone: Backbone, catalogue: Catalogue) -> None:
    """The build context: our packages, a bentofile, and the folder that `FrozenCatalogue` reads."""
    for package in _PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "reasoner")  # the reasoner's update is merged in the bundled weights
        shutil.copytree(_ROOT / package, stage / package, ignore=ignored)
    (stage / "evaluation").mkdir()
    for file in _FILES:
        shutil.copy(_ROOT / file, stage / file)
    write_frozen(stage / BUNDLED.name, backbone, catalogue)
    (stage / "bentofile.yaml").write_text(_bentofile())


def _bentofile() -> str:
    """JSON is YAML."""
    content = {
        "service": SERVICE,
        "description": "An OpenAI-compatible service: one frozen backbone and its promoted adapters.",
        "include": [*(f"{package}/**" for package in _PACKAGES), *_FILES, f"{BUNDLED.name}/**"],
    }
    return json.dumps(content, indent=2) + "\n"


def _bentoml_build(stage: Path, store: Path) -> Path:
    # A process of its own: this one has imported the packages from where they are installed, not from the stage.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTLINE_")}
    environment = {**kept, "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(stage)}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "."]
    done = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True)
    tags = [line.removeprefix("__tag__:") for line in done.stdout.splitlines() if line.startswith("__tag__:")]
    if done.returncode or not tags:
        raise BuildFailed(f"`bentoml build` ended with status {done.returncode}:\n{done.stderr.strip() or done.stdout.strip()}")
    name, _, number = tags[-1].strip().partition(":")
    return store / "bentos" / name / number
