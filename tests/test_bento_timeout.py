"""No timer of BentoML's outlives its request, and a service imports no more than a Bento holds."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from types import ModuleType

import bentoml._internal.server.http.traffic as traffic
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bento_timeout import NoTimeout

ROOT = Path(__file__).parent.parent


def as_published() -> ModuleType:
    """BentoML's module, whatever another test has put into the one that is imported."""
    spec = importlib.util.spec_from_file_location("traffic_as_published", str(traffic.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def timers_left(app: ASGIApp) -> int:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    await app({"type": "http", "path": "/"}, receive, send)
    return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


def test_a_request_leaves_no_timer() -> None:
    assert asyncio.run(timers_left(NoTimeout(answer, timeout=600))) == 0


def test_bentomls_own_middleware_still_leaves_one() -> None:
    # Once this fails, BentoML cancels its timer, and service.bento_timeout can go.
    assert asyncio.run(timers_left(as_published().TimeoutMiddleware(answer, timeout=600))) == 1


def test_the_service_runs_without_it_and_without_bentomls_spans_on_what_a_bento_holds() -> None:
    code = (
        # What only tuning needs: not in a Bento.
        "import sys; sys.modules.update(optuna=None, trl=None, tuning=None)\n"
        "class NotHeld:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.startswith('evaluation.') and name not in {of_evaluation()}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotHeld())\n"
        "import service.app, bentoml._internal.server.http.traffic as t\n"
        "from bentoml._internal.configuration.containers import BentoMLContainer\n"
        "from service.bento_image import pins\n"
        "service.app.Graftline.inject_config()\n"
        "excluded = BentoMLContainer.tracing_excluded_urls.get()\n"
        "print(t.TimeoutMiddleware.__name__, excluded.url_disabled('http://127.0.0.1/v1/completions'))\n"
        "print(*(pin.partition('==')[0] for pin in pins()))\n"
        "print(*(module.__file__ for module in [*sys.modules.values()] if getattr(module, '__file__', None)), sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said, pins, *files = done.stdout.splitlines()
    assert said == "NoTimeout True"
    packages = ("adapters", "engine", "evaluation", "registry", "service")
    ours = [Path(file) for file in files if any(Path(file).is_relative_to(ROOT / package) for package in packages)]
    owners, pinned = packages_distributions(), with_requirements({*pins.split(), "bentoml"})
    needed = {name for file in ours for name in imported_by(file)} - {*packages, *sys.stdlib_module_names}
    assert {"llguidance", "torch"} <= needed
    assert not [name for name in sorted(needed) if not {canonicalize_name(owner) for owner in owners[name]} & pinned]


def of_evaluation() -> list[str]:
    """The modules of this package that a Bento holds."""
    held = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    return [file.removesuffix(".py").replace("/", ".") for file in held if file.startswith("evaluation/")]


def imported_by(file: Path) -> set[str]:
    """Top names of what a module imports as it is loaded; of the engine's, wherever it imports."""
    tree = ast.parse(file.read_text())
    for_types = {id(one) for node in tree.body if isinstance(node, ast.If) for one in ast.walk(node)}
    nodes = [node for node in (ast.walk(tree) if file.parent.parent.name == "engine" else tree.body) if id(node) not in for_types]
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in whole | parts}


def with_requirements(names: set[str]) -> set[str]:
    """The distributions that an installation of these brings, extras aside."""
    found, waiting = set[str](), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(required.name))
    return found
