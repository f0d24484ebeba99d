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
from engine.engine import Continuation
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


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engines(
    backbone: Backbone, release: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[TorchEngine, VLLMEngine, Precision]]:
    precision: Precision = request.param
    embedded = TorchEngine(backbone, precision=precision)
    vllm = VLLMEngine(backbone, OPTIONS.model_copy(update={"dtype": precision}))
    for engine in (embedded, vllm):
        profile = Profile.load(release)
        engine.load("both", profile)
        engine.load("lora", Profile(profile.adapters[:1]))
    yield embedded, vllm, precision
    embedded.close()
    vllm.close()


@pytest.mark.parametrize("name", [None, "lora", "both"])
def test_both_engines_give_the_same_release_the_same_log_probabilities(
    engines: tuple[TorchEngine, VLLMEngine, Precision], backbone: Backbone, name: str | None
) -> None:
    embedded, vllm, precision = engines
    asked = [
        Continuation(backbone.chat_ids(prompt), tuple(backbone.encode(reply)))
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True)
    ]
    one, two, base = (_joined(found) for found in (embedded.score(asked, name), vllm.score(asked, name), embedded.score(asked)))
    difference = (one - two).abs()
    print(f"{precision} {name or 'base'}: mean {difference.mean():.2g}, largest {difference.max():.2g}")
    assert difference.max() < 1e-3 if precision == "float32" else difference.mean() < 0.05
    if name is not None:
        assert (two - base).abs().mean() > 0.1


def _joined(scored: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.tensor([logprob for one in scored for logprob in one])
