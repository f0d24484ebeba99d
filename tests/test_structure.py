"""What holds for the tree as a whole."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from gated_names import NAME
from typer.main import get_command

from service.cli import app

ROOT = Path(__file__).parent.parent
ORDER = ["adapters", "engine", "evaluation", "registry", "tuning", "service"]
OWNERS = {"peft": "adapters", "vllm": "engine", "mlflow": "registry", "optuna": "tuning", "trl": "tuning", "bentoml": "service"}


@cache
def imported_packages(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        assert not imported_packages(file) & above, f"{file.relative_to(ROOT)} imports from a package above it"


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_one_package_owns_each_library(library: str, owner: str) -> None:
    for package in ORDER:
        for file in (ROOT / package).rglob("*.py"):
            if package != owner:
                assert library not in imported_packages(file), (
                    f"only {owner}/ imports {library}, but {file.relative_to(ROOT)} does"
                )


def test_no_two_classes_of_the_training_code_share_a_name() -> None:
    trees = [ast.parse(file.read_text()) for file in (ROOT / "tuning").rglob("*.py")]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert not [name for name in sorted(set(names)) if names.count(name) > 1]


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda file: file.name)
def test_every_recipe_loads(file: Path) -> None:
    from tuning.recipe import Recipe

    assert Recipe.load(file).name


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(wheel["packages"]) == sorted(ORDER)
    assert wheel["force-include"] == {"recipes": "recipes"}, "the quickstart's recipe lies beside the packages"


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"quickstart", "test"} <= named <= targets


def test_commands_in_the_readme_exist() -> None:
    commands = set(get_command(app).commands)
    named = set(re.findall(r"\bgraftline ([a-z][a-z-]*)", (ROOT / "README.md").read_text()))
    assert {"tune", "promote"} <= named <= commands


COMMANDS = (
    "",
    "tune",
    "sweep status",
    "evaluate",
    "knockout",
    "elicited",
    "hybrid",
    "thoughts",
    "steer",
    "decoding",
    "tune-decoding",
    "export-gguf",
    "import-gguf",
    "sae train",
    "sae score",
    "sae steer",
    "continual",
    "continue",
    "curriculum",
    "attribute",
    "trace-reliance",
    "report",
    "publish",
    "promote",
    "rollback",
    "canary start",
    "canary status",
    "status",
    "merge",
    "softcot-arms",
    "reduce-intruders",
    "serve",
    "keys",
    "keys create",
    "audit",
    "backbone install",
)
# Each in a fork of its own, which has what all of them import and nothing that another one did.
HELP = """
import os, sys
import service.cli
for command in sys.argv[1].split(","):
    if not (child := os.fork()):
        sys.argv = ["graftline", *command.split(), "--help"]
        try: service.cli.main()
        except SystemExit as end: code = end.code
        heavy = {"torch", "peft", "mlflow", "optuna", "bentoml", "transformers"} & set(sys.modules)
        print("ended", code, *sorted(heavy), end=chr(12), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command says to --help, then how it ended, and what it imported of what is heavy."""
    done = subprocess.run([sys.executable, "-c", HELP, ",".join(COMMANDS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, done.stdout.split("\f")[:-1], strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(helps: dict[str, str], command: str) -> None:
    said, _, ended = helps[command].rpartition("ended ")
    assert f"Usage: graftline {command}".rstrip() in said and ended == "0", helps[command]


def test_status_reads_a_registry_without_torch(tmp_path: Path, prepared_store: Path) -> None:
    shutil.copy(prepared_store, tmp_path / "mlflow.db")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['graftline', 'status', '--json', '--home', {str(tmp_path)!r}]\n"
        "import service.cli; service.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert NAME in done.stdout
