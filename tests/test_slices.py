"""Texts that are scored and looked into slice by slice, while rows stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from test_chunks import KINDS, loaded, prompt_of

from adapters.backbone import Backbone
from engine.engine import Continuation, GenerationRequest
from engine.errors import EngineError
from engine.torch_engine import TorchEngine

CHUNK = 20


@pytest.fixture
def whole(backbone: Backbone) -> Iterator[TorchEngine]:
    engine = loaded(backbone)
    yield engine
    engine.close()


@pytest.fixture
def sliced(backbone: Backbone) -> Iterator[TorchEngine]:
    """Its step loop runs, so that what is read is read beside rows that may stream."""
    engine = loaded(backbone, prefill_chunk_tokens=CHUNK)
    engine._started_loop()
    yield engine
    engine.close()


def branching(backbone: Backbone) -> list[Continuation]:
    """Texts that share their beginnings, and one that is alone."""
    prompt, other = prompt_of(backbone, 70), prompt_of(backbone, 50, 1)
    ends = [tuple(range(30 + 5 * place, 45 + 7 * place)) for place in range(3)]
    return [*(Continuation(prompt, end, place) for place, end in enumerate(ends)), Continuation(other, ends[0], 4)]


@pytest.mark.parametrize("profile", KINDS)
def test_scores_in_slices_are_those_of_the_whole_text(sliced: TorchEngine, whole: TorchEngine, profile: str | None) -> None:
    asked = branching(whole.backbone)
    for one, two in zip(sliced.score(asked, profile), whole.score(asked, profile), strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), atol=1e-4, rtol=1e-4)


def test_a_prompt_is_read_back_in_slices_as_it_is_whole(sliced: TorchEngine, whole: TorchEngine) -> None:
    asked = GenerationRequest(prompt_of(whole.backbone, 90), "both", 2, num_prompt_logprobs=2)
    (one,), (two,) = sliced.complete([asked]), whole.complete([asked])
    assert len(one.prompt) == len(two.prompt) == 90
    for read, expected in zip(one.prompt[1:], two.prompt[1:], strict=True):
        assert read.token_id == expected.token_id and [top.token_id for top in read.top] == [top.token_id for top in expected.top]
        assert read.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_states_in_slices_are_those_of_the_whole_text(sliced: TorchEngine, whole: TorchEngine) -> None:
    prompt = prompt_of(whole.backbone, 70)
    asked = [Continuation(prompt, (9, 10, 11)), Continuation(prompt[:30], (9,) * 33, 20)]
    found = [engine.hidden_states(asked, ["lora", None], [1, 0]) for engine in (sliced, whole)]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_a_row_that_streams_gets_a_step_between_two_slices(sliced: TorchEngine) -> None:
    ids = prompt_of(sliced.backbone, 12)
    text = Continuation(prompt_of(sliced.backbone, 200, 1), (9, 10))

    async def run() -> int:
        stream = sliced.generate(GenerationRequest(ids, None, 400, ignore_end=True))
        await anext(stream)
        before = sliced.stats().steps
        await asyncio.to_thread(sliced.score, [text], "lora")
        steps = sliced.stats().steps - before
        await stream.aclose()  # type: ignore[attr-defined]
        return steps

    assert asyncio.run(run()) >= 200 // CHUNK


def test_a_name_that_is_read_under_keeps_its_weights(sliced: TorchEngine) -> None:
    # Between two slices anything may be asked for: half a text under the old weights and half under none would be no error.
    with sliced._using("lora"), pytest.raises(EngineError, match="'lora' has 1 in flight"):
        sliced.unload("lora")
    sliced.unload("lora")
