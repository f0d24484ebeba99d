"""A service in a process of its own, over the releases of a registry, and what a client asks of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from live_service import Live

from registry.tracking import Tracking
from service.serve import Server, start_server
from service.settings import Settings

PROMPT = "Start with 12. Add 5. What is the result?"
POLL_S = 0.5


@contextmanager
def serving(tracking: Tracking, backbone_directory: Path, **given: object) -> Iterator[Server]:
    """`given`: settings that differ."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tracking.cache.parent
    usual = {"backbone": str(backbone_directory), "device": "cpu", "poll_s": POLL_S, "threads": 1, "max_rows": 8}
    settings = Settings.model_validate({**usual, "home": home, "port": port, **given})
    with start_server(settings, log_file=home / "service.log", timeout_s=400) as server:
        yield server


def client_of(server: Live | Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0, timeout=60)


def write(client: openai.OpenAI, model: str, **fields: object) -> str:
    """The text of a completion of 24 tokens at most."""
    call: Callable[..., openai.types.Completion] = client.completions.create
    return call(**{"model": model, "prompt": PROMPT, "max_tokens": 24, **fields}).choices[0].text
