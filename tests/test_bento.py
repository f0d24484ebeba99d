"""A Bento runs from its own files, whichever command built it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.release import publish
from service.bento import build
from service.serve import start_server
from service.settings import Settings

ROOT = Path(__file__).parent.parent


def by_graftline(settings: Settings, store: Path) -> Path:
    return build(settings, store=store)


def by_bentoml(settings: Settings, store: Path) -> Path:
    """`bentoml build` as it is typed in the project's root."""
    store.mkdir()
    environment = {**os.environ, **settings.environment(), "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "build"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    return store / "bentos" / "graftline" / (store / "bentos" / "graftline" / "latest").read_text()


@pytest.mark.parametrize("build_bento", [by_graftline, pytest.param(by_bentoml, marks=pytest.mark.slow)])
def test_a_bento_serves_its_backbone_and_its_release_without_a_registry(
    tmp_path: Path, backbone_directory: Path, session_backbone: Backbone, build_bento: Callable[[Settings, Path], Path]
) -> None:
    home = tmp_path / "home"
    tracking = store_at(home)
    write_release(tmp_path / "law", session_backbone, random_lora(session_backbone, 1))
    publish(tracking, "law", tmp_path / "law")
    promote(tracking, "law", 1)
    bento = build_bento(Settings(backbone=str(backbone_directory), device="cpu", home=home), tmp_path / "store")
    assert not (ROOT / "frozen").exists()
    assert "torch==" in (bento / "env" / "python" / "requirements.txt").read_text()
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert dockerfile.index("requirements.txt") < dockerfile.index("COPY --chown=bentoml:bentoml . ./"), (
        "packages are a layer below"
    )
    assert "\nEXPOSE 3000\n" in dockerfile and dockerfile.rindex("\nUSER bentoml\n") < dockerfile.index("\nENTRYPOINT ")
    leaks = [file for file in bento.rglob("*") if file.is_file() and str(home).encode() in file.read_bytes()]
    assert not leaks, "nothing of where it was built is in it"

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Another home, another machine: neither the registry nor the backbone's directory is told to it.
    settings = Settings(home=tmp_path / "elsewhere", port=port, threads=1)
    with start_server(settings, log_file=tmp_path / "bento.log", target=str(bento)) as server:
        client = openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0)
        assert {card.id for card in client.models.list()} == {backbone_directory.name, "law"}
        replies = [
            client.completions.create(model=model, prompt="Start with 12.", max_tokens=8, temperature=0)
            for model in ("law", backbone_directory.name)
        ]
    assert [reply.model for reply in replies] == ["law@1", backbone_directory.name]
    assert replies[0].choices[0].text != replies[1].choices[0].text
    assert not (tmp_path / "elsewhere" / "mlflow.db").exists()
