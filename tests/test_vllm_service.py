"""`graftline serve --engine vllm` as one whole: a registry's releases over HTTP, promoted and rolled back while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from fitted import fitted_lora
from running_service import serving
from small_releases import promote, write_release
from stores import store_at
from vllm_backbones import small_backbone

from adapters.backbone import Backbone
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from registry.ledger import Ledger
from registry.release import publish
from registry.tracking import Tracking
from service.serve import Server

pytest.importorskip("vllm", reason="vLLM has an environment of its own: run `make test-vllm`")
pytestmark = [pytest.mark.slow, pytest.mark.vllm]

TEXT = "Start with 12. Add 5."
WAIT_S = 30.0


@pytest.fixture(scope="module")
def backbone(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(backbone_directory, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def tracking(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """law@1 is champion, law@2 is not."""
    home = tmp_path_factory.mktemp("home")
    tracking = store_at(home)
    for version in (1, 2):
        write_release(home / f"law-{version}", backbone, fitted_lora(backbone, version))
        publish(tracking, "law", home / f"law-{version}")
    promote(tracking, "law", 1)
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking, backbone: Backbone) -> Iterator[Server]:
    on_vllm = {"engine": "vllm", "vllm_max_loras": 2, "vllm_max_lora_rank": 8, "vllm_cache_gib": 0.05, "vllm_dtype": "float32"}
    with serving(tracking, Path(backbone.name), max_rows=4, **on_vllm) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def wanted(backbone: Backbone) -> dict[str, str]:
    """What each writes in the PyTorch engine, greedily."""
    engine = TorchEngine(backbone, precision="float32")
    for version in (1, 2):
        engine.load(f"law@{version}", Profile((fitted_lora(backbone, version),)))
    names = (None, "law@1", "law@2")
    asked = [GenerationRequest(tuple(backbone.encode(TEXT)), name, 12, temperature=0.0) for name in names]
    texts = [completion.text for completion in engine.complete(asked)]
    engine.close()
    assert len(set(texts)) == 3
    return dict(zip((Path(backbone.name).name, *names[1:]), texts, strict=True))


def written(client: openai.OpenAI, model: str) -> tuple[str, str]:
    found = client.completions.create(model=model, prompt=TEXT, max_tokens=12, temperature=0)
    return found.model, found.choices[0].text


def test_backbone_champion_and_version_write_as_in_the_pytorch_engine(client: openai.OpenAI, wanted: dict[str, str]) -> None:
    for model, release in [*((name, name) for name in wanted), ("law", "law@1")]:
        assert written(client, model) == (release, wanted[release])


def test_a_stream_tells_its_usage_and_an_unknown_model_is_404(client: openai.OpenAI, wanted: dict[str, str]) -> None:
    chunks = list(
        client.completions.create(
            model="law", prompt=TEXT, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == wanted["law@1"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12
    with pytest.raises(openai.NotFoundError):
        written(client, "nobody")


def test_a_promotion_and_a_rollback_are_served_while_it_runs(
    client: openai.OpenAI, server: Server, tracking: Tracking, wanted: dict[str, str]
) -> None:
    promote(tracking, "law", 2)
    assert awaited(client, "law@2") == wanted["law@2"]
    Ledger(tracking, "law").rollback("worse", 1)
    assert awaited(client, "law@1") == wanted["law@1"]
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert 'graftline_requests_total{model="law@2",outcome="completed"}' in metrics


def awaited(client: openai.OpenAI, release: str) -> str:
    ends = time.monotonic() + WAIT_S
    while True:
        model, text = written(client, "law")
        if model == release:
            return text
        assert time.monotonic() < ends, f"{model} still answers for law"
        time.sleep(0.1)
