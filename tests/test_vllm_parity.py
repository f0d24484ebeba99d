"""One release on both engines over a real backbone: the log-probabilities agree. `make test-vllm` runs it.

The LoRA is the one that makes the built-in reasoner, beside the backbone that it was fitted on: random weights of its size would
spread bfloat16's rounding through the layers as no fitted ones do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from fitted import fitted

from adapters.backbone import RAW, REASONER_UPDATE, Backbone
from adapters.lora import LoRA
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.engine import Continuation, Engine, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from engine.vllm.options import VLLMOptions
from engine.vllm.vllm_engine import VLLMEngine

pytest.importorskip("vllm", reason="vLLM has an environment of its own: run `make test-vllm`")
pytestmark = [pytest.mark.slow, pytest.mark.vllm]

Precision = Literal["float32", "bfloat16"]
PROMPTS = (
    "Name three colors.",
    "A farmer has 17 sheep and buys 5 more. How many sheep are there? Think step by step.",
    "Which chapter of ICD-10 is cholera in?",
    "Write one sentence about the sea.",
)
REPLIES = (
    "Red, green and blue.",
    "There were 17 sheep. 17 + 5 = 22.\nAnswer: 22",
    "Cholera is an intestinal infection.\nAnswer: Certain infectious and parasitic diseases",
    "The sea is wide, and its waves never rest.",
)
BFLOAT16_SPACING = 0.125  # between numbers of 16 to 32, where the logits of likely tokens lie
OPTIONS = VLLMOptions(max_loras=2, max_lora_rank=16, max_rows=4, max_model_len=512, cache_gib=0.5)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load(RAW, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def release(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As files, with soft thoughts of random weights beside the LoRA."""
    directory = tmp_path_factory.mktemp("release")
    Profile((LoRA.load(REASONER_UPDATE), fitted(SoftCoT(SoftCoTSpec(num_thoughts=4)), backbone, 2))).save(directory)
    return directory


@pytest.fixture(scope="module")
def exact(backbone: Backbone, release: Path) -> Iterator[TorchEngine]:
    """Computes in float32, and writes the replies that all are asked about."""
    engine = TorchEngine(backbone, precision="float32")
    _load(engine, release)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engines(
    backbone: Backbone, release: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[TorchEngine, VLLMEngine, Precision]]:
    precision: Precision = request.param
    embedded = TorchEngine(backbone, precision=precision)
    vllm = VLLMEngine(backbone, OPTIONS.model_copy(update={"dtype": precision}))
    for engine in (embedded, vllm):
        _load(engine, release)
    yield embedded, vllm, precision
    embedded.close()
    vllm.close()


@pytest.mark.parametrize("name", [None, "lora", "both"])
def test_both_engines_give_what_a_release_writes_the_same_log_probabilities(
    engines: tuple[TorchEngine, VLLMEngine, Precision], exact: TorchEngine, backbone: Backbone, name: str | None
) -> None:
    embedded, vllm, precision = engines
    requests = [GenerationRequest(backbone.chat_ids(prompt), name, 32, 0.0) for prompt in PROMPTS]
    asked = [
        Continuation(request.prompt_ids, done.token_ids) for request, done in zip(requests, exact.complete(requests), strict=True)
    ]
    one, two, base = (_joined(found) for found in (embedded.score(asked, name), vllm.score(asked, name), embedded.score(asked)))
    apart = _apart(f"{precision} {name or 'base'}, its own replies", one, two)
    assert apart.max() < 1e-3 if precision == "float32" else apart.mean() < 0.05
    if name is not None:
        assert (two - base).abs().mean() > 0.1


@pytest.mark.parametrize("name", [None, "lora", "both"])
def test_what_a_release_would_not_write_is_within_bfloat16s_spacing_of_float32_in_both_engines(
    engines: tuple[TorchEngine, VLLMEngine, Precision], exact: TorchEngine, backbone: Backbone, name: str | None
) -> None:
    """bfloat16 rounds each logit to its own: what is unlikely (here -4 a token) lies further from float32, in both engines."""
    embedded, vllm, precision = engines
    asked = [
        Continuation(backbone.chat_ids(prompt), tuple(backbone.encode(reply)))
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True)
    ]
    truth, one, two = (_joined(engine.score(asked, name)) for engine in (exact, embedded, vllm))
    ours, theirs = (_apart(f"{precision} {name or 'base'}, {who}", truth, found) for who, found in (("ours", one), ("vLLM", two)))
    if precision == "float32":
        assert max(ours.max(), theirs.max()) < 1e-3
    else:
        assert max(ours.mean(), theirs.mean()) < BFLOAT16_SPACING


def _load(engine: Engine, release: Path) -> None:
    profile = Profile.load(release)
    engine.load("both", profile)
    engine.load("lora", Profile(profile.adapters[:1]))


def _apart(what: str, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    difference = (one - two).abs()
    print(f"{what}: mean {difference.mean():.2g}, largest {difference.max():.2g}, of {one.mean():.2f} a token")
    return difference


def _joined(scored: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.tensor([logprob for one in scored for logprob in one])
