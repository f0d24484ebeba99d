"""A Bento runs from its own files, whichever command built it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.release import publish
from service.bento import build
from service.keys import KeyStore, Quota
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


def _bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.slow
@pytest.mark.parametrize("build_bento", [by_graftline, by_bentoml])
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
    assert "\nARG GRAFTLINE_HOST=0.0.0.0\n" in dockerfile, "inside a container 127.0.0.1 is reached by nobody"
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
        told = {"model": "law", "messages": [{"role": "user", "content": "Start with 12."}], "reply": "12 + 5\nAnswer: 17"}
        xray = httpx.post(f"{server.openai_url}/xray", json=told, timeout=60).json()
        page = httpx.get(server.url, follow_redirects=True)
        # From the first key on, what BentoML itself would answer is closed too.
        secret = KeyStore(settings.home).create("reader", ("complete",), Quota()).secret
        paths = ("/v1/models", "/openapi.json", "/metrics", "/docs.json", "/schema.json", "/docs", "/static_content/x.css")
        heads = ({}, _bearer(secret))
        asked = {path: [httpx.get(f"{server.url}{path}", headers=headers) for headers in heads] for path in paths}
    assert {path: without.status_code for path, (without, _) in asked.items()} == dict.fromkeys(paths, 401)
    statuses = {path: held.status_code for path, (_, held) in asked.items()}
    assert statuses.pop("/v1/models") == 200 and statuses.pop("/openapi.json") == 200 and statuses.pop("/metrics") == 403
    assert {*statuses.values()} == {404}
    assert [reply.model for reply in replies] == ["law@1", backbone_directory.name]
    assert replies[0].choices[0].text != replies[1].choices[0].text
    assert xray["model"] == "law@1" and len(xray["steps"]) == 1
    assert "<title>Graftline console</title>" in page.text, "the page is ours, and not BentoML's"
    assert not (tmp_path / "elsewhere" / "mlflow.db").exists()


@pytest.mark.slow
def test_its_pins_are_all_that_it_needs(tmp_path: Path, backbone_directory: Path) -> None:
    """As in its image: an environment that holds what requirements.txt names, started by `bentoml serve` with no word of ours."""
    home = tmp_path / "home"
    store_at(home)
    bento = build(Settings(backbone=str(backbone_directory), device="cpu", home=home), store=tmp_path / "store")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    pins = ["-r", str(bento / "env" / "python" / "requirements.txt")]
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *pins], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": f"{programs}:{os.defpath}",
        "HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
        "GRAFTLINE_PORT": str(port),
    }
    with subprocess.Popen([programs / "bentoml", "serve", bento], cwd=bento, env=environment) as server:
        try:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=240, timeout=30) as client:
                for asked in ({}, {"extra_body": {"guided_choice": ["12", "13"]}}):  # plain, and held by a grammar
                    reply = client.completions.create(model=backbone_directory.name, prompt="Start", max_tokens=8, **asked)
                    assert reply.choices[0].finish_reason in ("stop", "length")
            assert server.poll() is None
        finally:
            server.terminate()
