"""What a request says about its tokens is done, on its own row and on no other."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from adapters.backbone import Backbone
from engine.engine import Completion, GenerationRequest
from engine.token_choice import TokenChoice
from engine.torch_engine import TorchEngine

PROMPT = "Start with 12. Add 5. What is the result?"


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone) -> TorchEngine:
    return TorchEngine(session_backbone)


def asked(engine: TorchEngine, num_tokens: int = 16, **fields: Any) -> GenerationRequest:
    """Greedy over many repetitions, as a random backbone writes; no end unless a test is about it."""
    fields = {"temperature": 0.0, "ignore_end": True, **fields}
    return GenerationRequest(engine.backbone.chat_ids(PROMPT), max_new_tokens=num_tokens, **fields)


def written(engine: TorchEngine, num_tokens: int = 16, **fields: Any) -> Completion:
    return engine.complete([asked(engine, num_tokens, **fields)])[0]


def most_often(completion: Completion) -> int:
    return max(Counter(completion.token_ids).values())


def test_a_bias_of_100_writes_its_token_and_one_of_minus_100_never_does(engine: TorchEngine) -> None:
    plain = written(engine)
    wanted, unwanted = 300, plain.token_ids[0]
    assert set(written(engine, logit_bias=((wanted, 100.0),)).token_ids) == {wanted}
    assert unwanted not in written(engine, logit_bias=((unwanted, -100.0),)).token_ids


def test_penalties_are_openais_sums_and_vllms_factor() -> None:
    request = GenerationRequest((0, 1), repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    choice = TokenChoice.of(request, frozenset(), None)
    assert choice is not None
    logits_V = torch.tensor([4.0, -4.0, 4.0, -4.0, 4.0])
    for token_id in (2, 2, 3):
        choice.allowed(logits_V)
        choice.take(token_id)
    assert choice.allowed(logits_V).tolist() == [2.0, -8.0, 2.0 - 1.0 - 0.25, -8.0 - 0.5 - 0.25, 4.0]
    assert logits_V.tolist() == [4.0, -4.0, 4.0, -4.0, 4.0]


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_penalty_reaches_the_engine(engine: TorchEngine, field: str) -> None:
    plain = written(engine, 48)
    assert written(engine, 48, **{field: 0.0 if field != "repetition_penalty" else 1.0}).token_ids == plain.token_ids
    assert written(engine, 48, **{field: 2.0}).token_ids != plain.token_ids


def test_a_frequency_counts_and_a_presence_does_not(engine: TorchEngine) -> None:
    bias = ((300, 100.0), (301, 60.0))
    many = 64
    assert set(written(engine, many, logit_bias=bias, presence_penalty=2.0).token_ids) == {300}
    assert 301 in written(engine, many, logit_bias=bias, frequency_penalty=2.0).token_ids


def test_a_repetition_penalty_reaches_the_tokens_of_the_prompt_and_the_others_do_not(engine: TorchEngine) -> None:
    in_prompt = engine.backbone.chat_ids(PROMPT)[5]
    bias = ((in_prompt, 100.0),)
    assert written(engine, 1, logit_bias=bias, presence_penalty=2.0, frequency_penalty=2.0).token_ids == (in_prompt,)
    assert written(engine, 1, logit_bias=bias, repetition_penalty=100.0).token_ids != (in_prompt,)


def test_a_repetition_penalty_below_1_repeats(engine: TorchEngine) -> None:
    assert most_often(written(engine, repetition_penalty=0.02)) > most_often(written(engine, repetition_penalty=50.0))


def test_logprobs_are_the_models_own_before_biases_and_penalties(engine: TorchEngine) -> None:
    plain = written(engine, 1, top_logprobs=20)
    token = plain.top_logprobs[0][7].token_id
    biased = written(engine, 1, top_logprobs=20, logit_bias=((token, 100.0),), presence_penalty=1.0, repetition_penalty=1.5)
    assert biased.token_ids == (token,)
    assert biased.top_logprobs == plain.top_logprobs
    assert biased.logprobs[0] == pytest.approx(plain.top_logprobs[0][7].logprob, abs=1e-6)


def test_no_end_comes_before_min_new_tokens(engine: TorchEngine) -> None:
    end = min(engine.backbone.stop_ids)
    eager = {"ignore_end": False, "logit_bias": ((end, 100.0),)}
    assert len(written(engine, **eager).token_ids) == 1
    late = written(engine, **eager, min_new_tokens=5)
    assert late.token_ids[5] == end and len(late.token_ids) == 6 and late.finish_reason == "stop"


def test_no_stop_text_is_looked_for_before_min_new_tokens(engine: TorchEngine) -> None:
    (word,) = engine.backbone.encode("a")
    often = {"logit_bias": ((word, 100.0),), "stop": ("a",)}
    assert len(written(engine, **often).token_ids) == 1
    late = written(engine, **often, min_new_tokens=3)
    assert (late.text, len(late.token_ids), late.finish_reason) == ("aaa", 4, "stop")


def test_an_ignored_end_is_a_token_like_others(engine: TorchEngine) -> None:
    end = min(engine.backbone.stop_ids)
    completion = written(engine, 4, logit_bias=((end, 100.0),))
    assert completion.token_ids == (end,) * 4 and completion.finish_reason == "length"


def test_a_stop_token_ends_the_reply_without_its_text(engine: TorchEngine) -> None:
    (word,) = engine.backbone.encode("a")
    often = {"logit_bias": ((word, 100.0),)}
    assert written(engine, 3, **often).text == "aaa"
    ended = written(engine, 3, **often, stop_ids=(word,))
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (word,), "stop")
    assert written(engine, 3, **often, stop_ids=(word,), includes_stop=True).text == "a"


def test_a_stop_text_is_returned_where_that_is_asked_for(engine: TorchEngine) -> None:
    (word,) = engine.backbone.encode("a")
    often = {"logit_bias": ((word, 100.0),), "stop": ("aa",)}
    assert written(engine, **often).text == ""
    assert written(engine, **often, includes_stop=True).text == "aa"


def drawn(engine: TorchEngine, **fields: Any) -> set[int]:
    many = [asked(engine, 1, temperature=1.5, seed=seed, **fields) for seed in range(48)]
    return {completion.token_ids[0] for completion in engine.complete(many)}


def test_top_k_draws_from_the_likeliest_only(engine: TorchEngine) -> None:
    best = [token for token, _ in written(engine, 1, top_logprobs=3).top_logprobs[0]]
    assert len(drawn(engine)) > 3
    assert drawn(engine, top_k=1) == {best[0]}
    assert 1 < len(drawn(engine, top_k=3)) and drawn(engine, top_k=3) <= set(best)


def test_min_p_draws_from_what_is_likely_enough(engine: TorchEngine) -> None:
    listed = written(engine, 1, top_logprobs=20).top_logprobs[0]
    # At a temperature of 1.5 the share of the likeliest is the ratio's 1.5th root.
    enough = {token for token, logprob in listed if math.exp((logprob - listed[0].logprob) / 1.5) >= 0.5}
    assert 1 < len(drawn(engine, min_p=0.5)) and drawn(engine, min_p=0.5) <= enough
    assert drawn(engine, min_p=1.0) == {listed[0].token_id}


def test_batch_mates_never_change_a_row(engine: TorchEngine) -> None:
    fields: list[dict[str, Any]] = [
        {},
        {"logit_bias": ((300, 5.0),)},
        {"presence_penalty": 1.5, "temperature": 0.9, "seed": 1},
        {"repetition_penalty": 1.3, "top_k": 5, "temperature": 1.2, "seed": 2},
        {"min_p": 0.2, "temperature": 1.0, "seed": 3},
    ]
    alone = [written(engine, **one).token_ids for one in fields]
    together = [completion.token_ids for completion in engine.complete([asked(engine, **one) for one in fields])]
    assert together == alone and len(set(alone)) == len(alone)


@pytest.mark.parametrize("field", ["logit_bias", "stop_ids"])
def test_an_unknown_token_id_is_refused(engine: TorchEngine, field: str) -> None:
    value: Any = ((10**6, 1.0),) if field == "logit_bias" else (10**6,)
    with pytest.raises(ValueError, match=field):
        written(engine, **{field: value})
