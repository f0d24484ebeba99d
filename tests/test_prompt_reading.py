"""A prompt read back tells of its tokens what scoring tells, under the profile that reads it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.engine import Completion, Continuation, Delta, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone) -> TorchEngine:
    engine = TorchEngine(session_backbone)
    lora = LoRA(LoRASpec(rank=4))
    with lora.attach(session_backbone):
        generator = torch.Generator().manual_seed(0)
        for parameter in lora.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    engine.load("lora", Profile((lora,)))
    soft = SoftCoT(SoftCoTSpec(num_thoughts=3, assistant_layers=1, gate=0.5))
    with soft.attach(session_backbone):
        pass
    engine.load("soft", Profile((soft,)))
    return engine


def request(engine: TorchEngine, text: str = "Start with 12. Add 5", **fields: Any) -> GenerationRequest:
    fields = {"max_new_tokens": 1, "temperature": 0.0, "num_prompt_logprobs": 2, **fields}
    return GenerationRequest(tuple(engine.backbone.encode(text)), **fields)


def read(engine: TorchEngine, *requests: GenerationRequest) -> list[Completion]:
    return engine.complete(requests)


@pytest.mark.parametrize("profile", [None, "lora"])
def test_its_tokens_are_as_likely_as_scoring_says(engine: TorchEngine, profile: str | None) -> None:
    asked = request(engine, profile=profile)
    (completion,) = read(engine, asked)
    ids = asked.prompt_ids
    assert [token.token_id for token in completion.prompt] == list(ids)
    assert completion.prompt[0].logprob is None and completion.prompt[0].top == ()
    scored = engine.score([Continuation(ids[:1], ids[1:])], profile)[0]
    assert [token.logprob for token in completion.prompt[1:]] == pytest.approx(scored, abs=1e-5)


def test_an_adapter_changes_what_is_read(engine: TorchEngine) -> None:
    (plain,), (adapted,) = (read(engine, request(engine, profile=profile)) for profile in (None, "lora"))
    assert plain.prompt[5].logprob != pytest.approx(adapted.prompt[5].logprob, abs=1e-3)


def test_the_likeliest_are_listed_as_many_as_each_request_asks_for(engine: TorchEngine) -> None:
    many, one, none = read(engine, *(request(engine, num_prompt_logprobs=count) for count in (20, 1, 0)))
    for all_of_them, first, nothing in zip(many.prompt[1:], one.prompt[1:], none.prompt[1:], strict=True):
        logprobs = [logprob for _, logprob in all_of_them.top]
        assert len(logprobs) == 20 and logprobs == sorted(logprobs, reverse=True)
        assert first.top == all_of_them.top[:1] and nothing.top == ()


def test_a_listed_token_has_the_same_float_as_where_it_stands_in_the_prompt(engine: TorchEngine) -> None:
    (completion,) = read(engine, asked := request(engine))
    (longer,) = read(engine, replace(asked, prompt_ids=(*asked.prompt_ids, *completion.token_ids)))
    last = longer.prompt[-1]
    assert last.top[0] == (last.token_id, last.logprob) == (completion.token_ids[0], pytest.approx(completion.logprobs[0]))


def test_soft_thoughts_reach_the_tokens_behind_them_and_no_others(engine: TorchEngine) -> None:
    chat = engine.backbone.chat_ids("Add 5")
    header = len(engine.backbone.assistant_header)
    asked = [GenerationRequest(chat, name, 1, 0.0, num_prompt_logprobs=0) for name in (None, "soft")]
    plain, soft = ([token.logprob for token in one.prompt] for one in read(engine, *asked))
    assert len(plain) == len(soft) == len(chat)
    assert soft[1:-header] == pytest.approx(plain[1:-header], abs=1e-5)
    assert soft[-header:] != pytest.approx(plain[-header:], abs=1e-3)
    # What scoring says of the same tokens, under the same thoughts.
    with torch.no_grad():
        prompt = engine.profile("soft").transform(engine.backbone, chat)
        states = engine.backbone.model(inputs_embeds=prompt.embed(engine.backbone.embeddings)[None]).logits[0].log_softmax(-1)
    own = [float(states[place - 1, prompt.ids[place]]) for place in range(len(prompt.ids) - header, len(prompt.ids))]
    assert soft[-header:] == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("profile", [None, "lora", "soft"])
def test_the_token_that_reading_foretells_is_the_one_that_is_written(engine: TorchEngine, profile: str | None) -> None:
    asked = request(engine, profile=profile, top_logprobs=3)
    (told,) = read(engine, asked)
    (written,) = engine.complete([request(engine, profile=profile, top_logprobs=3, num_prompt_logprobs=None)])
    assert (told.text, told.token_ids, told.finish_reason) == (written.text, written.token_ids, written.finish_reason)
    assert told.logprobs == pytest.approx(written.logprobs, abs=1e-5)
    assert [token for token, _ in told.top_logprobs[0]] == [token for token, _ in written.top_logprobs[0]]


def test_what_acts_on_the_token_is_not_left_out(engine: TorchEngine) -> None:
    (completion,) = read(engine, request(engine, logit_bias=((300, 100.0),)))
    assert completion.token_ids == (300,) and len(completion.prompt) > 1


def test_no_token_may_be_asked_for_where_the_prompt_is_read(engine: TorchEngine) -> None:
    (completion,) = read(engine, request(engine, max_new_tokens=0))
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", (), "length")
    assert len(completion.prompt) == completion.prompt_tokens
    with pytest.raises(ValueError, match="max_new_tokens"):
        request(engine, max_new_tokens=0, num_prompt_logprobs=None)


def test_one_prompt_of_one_token_is_read(engine: TorchEngine) -> None:
    (completion,) = read(engine, GenerationRequest((5,), max_new_tokens=0, num_prompt_logprobs=1))
    assert [(token.token_id, token.logprob) for token in completion.prompt] == [(5, None)]


def test_prompts_that_begin_alike_are_computed_once(engine: TorchEngine) -> None:
    before = engine.stats()
    read(engine, *(request(engine, "Take the number 7, then add 3, then take away 2." + end) for end in (" A", " B", " C")))
    after = engine.stats()
    computed, alone = after.scored_tokens - before.scored_tokens, after.scored_tokens_unshared - before.scored_tokens_unshared
    assert 0 < computed < 0.5 * alone


def test_a_stream_tells_the_prompt_with_its_first_delta_alone(session_backbone: Backbone) -> None:
    engine = TorchEngine(session_backbone)

    async def streamed(*requests: GenerationRequest) -> list[list[Delta]]:
        async def one(asked: GenerationRequest) -> list[Delta]:
            return [delta async for delta in engine.generate(asked)]

        return list(await asyncio.gather(*map(one, requests)))

    try:
        short, long, none = asyncio.run(
            streamed(request(engine), request(engine, max_new_tokens=4, ignore_end=True), request(engine, max_new_tokens=0))
        )
    finally:
        engine.close()
    assert len(short) == 1 and len(long) == 4 and none[0].token_id is None
    assert short[0].prompt == long[0].prompt == none[0].prompt != ()
    assert all(delta.prompt == () for delta in long[1:])
    assert short[0].token_id == long[0].token_id
