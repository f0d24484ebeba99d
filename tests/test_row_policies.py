"""Decoding policies in one batch: off is nothing at all, and no row's policy is felt by another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora, fitted_softcot

from adapters.backbone import TESTBED, Backbone
from engine.decoding.budget import Budget
from engine.decoding.row_policy import CompiledPolicy, refuse_unable
from engine.decoding.tip import SwitchPenalty
from engine.engine import Completion, Continuation, Delta, GenerationRequest
from engine.errors import CannotRun
from engine.profile import PROFILE, DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.task import reasoning_prompt
from evaluation.tasks import TASKS

WORDS = ("rot", "mirror", "shift")
POLICIES = {
    "off": DecodingPolicy(),
    "window": DecodingPolicy(tip=SwitchPenalty(alpha=30, beta=4, words=WORDS)),
    "const": DecodingPolicy(tip=SwitchPenalty(schedule="const", alpha=30, words=WORDS)),
    "cyclic": DecodingPolicy(tip=SwitchPenalty(schedule="cyclic", amplitude=30, period=8, words=WORDS)),
    "capped": DecodingPolicy(budget=Budget(max_trace_tokens=9)),
    "held": DecodingPolicy(budget=Budget(max_trace_tokens=60, min_trace_tokens=30, num_ignored_ends=1)),
    "soft": DecodingPolicy(budget=Budget(max_trace_tokens=12, ramp=40)),
    "both": DecodingPolicy(
        tip=SwitchPenalty(alpha=30, beta=4, words=WORDS), budget=Budget(max_trace_tokens=14, num_ignored_ends=1)
    ),
}
ADAPTED = ("lora", "thoughts")


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    backbone = Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32)
    engine = TorchEngine(backbone, max_rows=5)
    adapters = {"lora": (fitted_lora(backbone, 1),), "thoughts": (fitted_softcot(backbone, 2),)}
    for name, policy in POLICIES.items():
        engine.load(name, Profile(policy=policy))
    for kind in ADAPTED:
        engine.load(kind, Profile(adapters[kind], POLICIES["both"]))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def asked(engine: TorchEngine) -> list[GenerationRequest]:
    """Every policy on prompts of several lengths, so that rows join and leave at different steps."""
    examples = TASKS["alchemy"].examples("search", 2)
    prompts = [engine.backbone.chat_ids(reasoning_prompt(example)) for example in examples]
    return [GenerationRequest(ids, name, 60 + 3 * place) for name in (*POLICIES, *ADAPTED) for place, ids in enumerate(prompts)]


def assert_same(one: Completion, two: Completion) -> None:
    """Token for token; where two tokens are as likely, their log-probabilities must be."""
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-3, rtol=1e-3)
    assert (one.token_ids, one.text, one.finish_reason) == (two.token_ids, two.text, two.finish_reason)


def streamed(engine: TorchEngine, asked: list[GenerationRequest]) -> list[list[Delta]]:
    async def one(request: GenerationRequest) -> list[Delta]:
        return [delta async for delta in engine.generate(request)]

    async def together() -> list[list[Delta]]:
        return await asyncio.gather(*(one(request) for request in asked))

    return asyncio.run(together())


def test_a_row_with_everything_off_writes_what_greedy_generate_writes(
    engine: TorchEngine, asked: list[GenerationRequest]
) -> None:
    backbone, off = engine.backbone, [request for request in asked if request.profile == "off"]
    # Beside rows of every other policy.
    found = engine.complete(asked)[: len(off)]
    for request, completion in zip(off, found, strict=True):
        with torch.no_grad():
            whole = backbone.model.generate(
                torch.tensor([request.prompt_ids]),
                attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(backbone.stop_ids),
                pad_token_id=backbone.tokenizer.pad_token_id,
            )
        assert list(completion.token_ids) == whole[0, len(request.prompt_ids) :].tolist()


def test_rows_of_all_policies_equal_their_solo_runs(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    together = engine.complete(asked)
    for request, completion in zip(asked, together, strict=True):
        assert_same(completion, engine.complete([request])[0])
    # Each policy does something on some prompt, or the test would show nothing.
    by_name = {
        name: [c.text for r, c in zip(asked, together, strict=True) if r.profile == name] for name in (*POLICIES, *ADAPTED)
    }
    assert all(texts != by_name["off"] for name, texts in by_name.items() if name != "off"), by_name


def test_no_policy_is_felt_by_a_neighbour(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    off = asked[0]
    alone = engine.complete([off])[0]
    for request in asked[2::2]:
        assert_same(engine.complete([request, off])[1], alone)


def test_a_sampled_row_draws_the_same_whatever_its_neighbours_are(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    prompt = asked[0].prompt_ids
    drawn = [GenerationRequest(prompt, name, 40, temperature=1.2, top_p=0.9, seed=5) for name in POLICIES]
    for request, completion in zip(drawn, engine.complete(drawn), strict=True):
        assert_same(completion, engine.complete([request])[0])


def test_a_stream_writes_what_a_completion_is(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    whole = engine.complete(asked)
    for deltas, completion in zip(streamed(engine, asked), whole, strict=True):
        assert "".join(delta.text for delta in deltas) == completion.text
        assert tuple(delta.token_id for delta in deltas) == completion.token_ids
        assert deltas[-1].finish_reason == completion.finish_reason


def test_log_probabilities_are_of_the_model_without_its_policy(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    for request in (asked[2], asked[8], asked[-1]):
        written = engine.complete([request])[0]
        scored = engine.score([Continuation(request.prompt_ids, written.token_ids)], request.profile)[0]
        torch.testing.assert_close(torch.tensor(written.logprobs), torch.tensor(scored), atol=1e-3, rtol=1e-3)


def test_the_likeliest_tokens_are_streamed_too(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    request = replace(asked[-1], top_logprobs=3)
    whole = engine.complete([request])[0]
    tops = [delta.top_logprobs for delta in streamed(engine, [request])[0]]
    assert [[one.token_id for one in place] for place in tops] == [[one.token_id for one in p] for p in whole.top_logprobs]


def test_a_policy_of_the_request_stands_for_that_of_the_profile(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    both = next(request for request in asked if request.profile == "both")
    off = replace(both, policy=DecodingPolicy())
    assert engine.complete([off])[0].text == engine.complete([asked[0]])[0].text != engine.complete([both])[0].text


def test_a_row_without_interventions_holds_no_policy(engine: TorchEngine) -> None:
    assert CompiledPolicy.of(DecodingPolicy(), engine.backbone).for_row((), 10) is None


def test_a_policy_that_an_engine_lacks_is_refused_by_name() -> None:
    with pytest.raises(CannotRun, match="`tip` and `budget`, which the engine cannot run"):
        refuse_unable(POLICIES["both"], frozenset({"generate", "score"}), "the engine")
    refuse_unable(POLICIES["off"], frozenset({"generate"}), "the engine")
    refuse_unable(POLICIES["both"], TorchEngine.capabilities.fget(object.__new__(TorchEngine)), "the engine")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["const", "capped"])
def test_a_trace_end_that_never_shows_in_the_text_is_refused(engine: TorchEngine, name: str) -> None:
    unseen = POLICIES[name].model_copy(update={"trace_end": engine.backbone.tokenizer.eos_token})
    with pytest.raises(CannotRun, match="`trace_end` must be seen in the text"):
        engine.load("unseen", Profile(policy=unseen))


def test_a_refused_policy_leaves_what_was_loaded(engine: TorchEngine) -> None:
    broken = DecodingPolicy(tip=SwitchPenalty(words=("alternatively",)))
    with pytest.raises(CannotRun, match="'alternatively'"):
        engine.load("off", Profile(policy=broken))
    assert engine.profile("off").policy == DecodingPolicy()


def test_policies_that_requests_narrow_do_not_read_the_vocabulary_again(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, reads = backbone.tokenizer.get_vocab(), list[int]()

    def counted() -> dict[str, int]:
        reads.append(1)
        return vocabulary

    monkeypatch.setattr(backbone.tokenizer, "get_vocab", counted)
    told = list[int]()
    for size in range(2, 5):
        tip, budget = SwitchPenalty(alpha=size, words=("Diagno",)), Budget(max_trace_tokens=size)
        CompiledPolicy.of(DecodingPolicy(tip=tip, budget=budget, trace_end="Options:"), backbone)
        told.append(len(reads))
    assert told[0] > 0 and told == [told[0]] * 3


def test_an_engine_that_lacks_a_part_refuses_the_profile_at_load_by_its_name(backbone: Backbone) -> None:
    class Plain(TorchEngine):
        @property
        def capabilities(self) -> frozenset[str]:
            return super().capabilities - {"tip"}

    engine = Plain(backbone)
    with pytest.raises(CannotRun, match="asks for `tip`, which the engine cannot run"):
        engine.load("both", Profile(policy=POLICIES["both"]))
    assert engine.loaded == ()
    engine.load("budget", Profile(policy=DecodingPolicy(budget=Budget(max_trace_tokens=4))))
    engine.close()


def test_a_policy_is_stored_with_its_profile(engine: TorchEngine, tmp_path: Path) -> None:
    for policy in POLICIES.values():
        Profile(engine.profile("lora").adapters, policy).save(tmp_path)
        assert Profile.load(tmp_path).policy == policy
    # As it was written before there were interventions.
    (tmp_path / PROFILE).write_text('{"format_version": 1, "policy": {"temperature": 0.5, "top_p": 1.0}}')
    assert Profile.load(tmp_path).policy == DecodingPolicy(temperature=0.5)
