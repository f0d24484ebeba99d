"""The service inside the test's process: real sockets, no BentoML, started in about a second."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from service.application import new_application
from service.parts import Parts
from service.settings import Settings
from service.startup import is_ready, running


@dataclass(frozen=True)
class Live:
    """`app.state.parts` is what the endpoints work with: a test may look into it."""

    url: str  # http://HOST:PORT
    app: FastAPI

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts


@contextlib.contextmanager
def live(settings: Settings) -> Iterator[Live]:
    """Answers inside the block. What BentoML adds around the application is added here alike."""
    app = new_application()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(app, settings):
            yield

    app.router.lifespan_context = lifespan
    _add_what_bentoml_adds(app)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # asyncio does so only for sockets that say their protocol: else each reply waits 40 ms for the client's acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning", ws="none", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the service ended while it started"
                time.sleep(0.01)
            yield Live(url, app)
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def small(backbone_directory: Path, home: Path, **given: object) -> Settings:
    """Settings of a service over a tiny backbone and the registry in `home`."""
    return Settings.model_validate(
        {"backbone": str(backbone_directory), "device": "cpu", "home": home, "poll_s": 0.2, "threads": 1, "max_rows": 8, **given}
    )


def _add_what_bentoml_adds(app: FastAPI) -> None:
    async def livez() -> Response:
        return Response()

    async def readyz() -> Response:
        return Response(status_code=200 if is_ready(app) else 503)

    for path, answer in (("/livez", livez), ("/healthz", livez), ("/readyz", readyz)):
        app.add_api_route(path, answer)
