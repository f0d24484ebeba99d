"""No timer of BentoML's outlives its request, and a service imports no more than a Bento holds."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import bentoml._internal.server.http.traffic as traffic
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bento_timeout import NoTimeout


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


def test_the_service_runs_without_it_and_without_bentomls_spans_and_without_what_only_tuning_needs() -> None:
    # A Bento has the packages of bentofile.yaml: optuna and trl are not among them.
    code = (
        "import sys; sys.modules.update(optuna=None, trl=None, evaluation=None, tuning=None)\n"
        "import service.app, bentoml._internal.server.http.traffic as t\n"
        "from bentoml._internal.configuration.containers import BentoMLContainer\n"
        "service.app.Graftline.inject_config()\n"
        "excluded = BentoMLContainer.tracing_excluded_urls.get()\n"
        "print(t.TimeoutMiddleware.__name__, excluded.url_disabled('http://127.0.0.1/v1/completions'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.strip().endswith("NoTimeout True"), done.stderr
