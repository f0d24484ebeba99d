"""The vLLM engine beside the PyTorch engine: the same releases, the same numbers, and vLLM's traps. `make test-vllm` runs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import OverflowsFor, fitted, fitted_lora, fitted_softcot, random_steering
from safetensors.torch import load_file, save_file
from vllm_backbones import small_backbone

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.engine import Continuation, Delta, GenerationRequest
from engine.errors import BadGrammar, CannotRun, EngineDied, EngineError, NotFinite, PromptTooLong, TimedOut, UnknownProfile
from engine.grammar import Grammar
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from engine.vllm.options import VLLMOptions
from engine.vllm.vllm_engine import VLLMEngine

pytest.importorskip("vllm", reason="vLLM has an environment of its own: run `make test-vllm`")
pytestmark = [pytest.mark.slow, pytest.mark.vllm]

QUESTIONS = (
    "Start with 12. Add 5.",
    "Which chapter of ICD-10 is it in? Options: skin diseases; ear diseases",
    "Diagnosis: Cholera",
)
NAMES = (None, "one", "two", "soft", "both")
BUDGET = Budget(max_trace_tokens=6, max_answer_tokens=4, min_trace_tokens=2, num_ignored_ends=1)
CAPPED = DecodingPolicy(trace_end="|", budget=BUDGET)
PENALISED = DecodingPolicy(trace_end="|", tip=SwitchPenalty(alpha=5.0, words=("step", "12")))
OPTIONS = VLLMOptions(max_loras=3, max_lora_rank=16, max_rows=8, dtype="float32", cache_gib=0.05)


@pytest.fixture(scope="module")
def backbone(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(backbone_directory, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def profiles(backbone: Backbone) -> dict[str, Profile]:
    return {
        "one": Profile((fitted_lora(backbone, 1),)),
        "two": Profile((fitted_lora(backbone, 2, rank=2),)),
        "soft": Profile((fitted_softcot(backbone, 3),)),
        "both": Profile((fitted_lora(backbone, 4), fitted_softcot(backbone, 5))),
    }


@pytest.fixture(scope="module")
def reference(backbone: Backbone, profiles: dict[str, Profile]) -> Iterator[TorchEngine]:
    engine = TorchEngine(backbone, precision="float32")
    for name, profile in profiles.items():
        engine.load(name, profile)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(backbone: Backbone, profiles: dict[str, Profile]) -> Iterator[VLLMEngine]:
    """One for the whole file: a start takes half a minute. The last test ends its process."""
    engine = VLLMEngine(backbone, OPTIONS)
    for name, profile in profiles.items():
        engine.load(name, profile)
    yield engine
    engine.close()


def asked(backbone: Backbone, profile: str | None = None, question: str = QUESTIONS[0], **given: Any) -> GenerationRequest:
    return GenerationRequest(backbone.chat_ids(question), profile, **{"max_new_tokens": 12} | given)


def continuations(backbone: Backbone) -> list[Continuation]:
    ids = tuple(backbone.encode("Think step by step. Answer: 14"))
    return [*(Continuation(backbone.chat_ids(question), ids, 2) for question in QUESTIONS), Continuation((5, 6, 7), ids[:1])]


def greatest_difference(one: list[tuple[float, ...]], two: list[tuple[float, ...]]) -> float:
    return max(abs(a - b) for left, right in zip(one, two, strict=True) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_scores_as_the_pytorch_engine_and_not_as_the_base(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone, name: str | None
) -> None:
    scored = engine.score(continuations(backbone), name)
    assert greatest_difference(scored, reference.score(continuations(backbone), name)) < 1e-3
    if name is not None:
        assert greatest_difference(scored, reference.score(continuations(backbone))) > 0.1


def test_every_row_of_a_mixed_batch_writes_what_it_writes_alone(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone
) -> None:
    requests = [
        asked(backbone, name, question, max_new_tokens=4 + place, top_logprobs=2)
        for question in QUESTIONS
        for place, name in enumerate(NAMES)
    ]
    for expected, found in zip(reference.complete(requests), engine.complete(requests), strict=True):
        assert found.token_ids == expected.token_ids and found.text == expected.text
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
        assert [[one.token_id for one in place] for place in found.top_logprobs] == [
            [one.token_id for one in place] for place in expected.top_logprobs
        ]


def test_without_zeros_of_its_own_the_base_would_write_with_another_adapter(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone
) -> None:
    """vLLM's own fault on a CPU, of which our base rows know nothing; see engine.vllm.client."""
    request = asked(backbone)
    (expected,) = reference.complete([request])
    assert engine.complete([request, asked(backbone, "one"), asked(backbone, "two")])[0].token_ids == expected.token_ids
    held = engine._base
    try:
        engine._base = replace(held, held=None)
        bare = engine.complete([request, asked(backbone, "one"), asked(backbone, "two")])[0]
    finally:
        engine._base = held
    if bare.token_ids == expected.token_ids:
        pytest.skip("this vLLM leaves rows without a LoRA alone: the zeros are no longer needed")


@pytest.mark.parametrize("policy", [CAPPED, PENALISED])
@pytest.mark.parametrize("name", [None, "both"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_policy_draws_the_tokens_that_it_draws_in_the_pytorch_engine(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone, policy: DecodingPolicy, name: str | None, temperature: float
) -> None:
    request = asked(backbone, name, max_new_tokens=24, temperature=temperature, seed=3, policy=policy)
    (expected,), (found,) = reference.complete([request]), engine.complete([request])
    assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)


def test_penalties_beside_a_policy_are_those_of_the_pytorch_engine(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone
) -> None:
    given = {"repetition_penalty": 1.5, "presence_penalty": 2.0, "top_k": 20, "temperature": 0.8, "seed": 3}
    request = asked(backbone, "one", max_new_tokens=24, policy=PENALISED, **given)
    assert engine.complete([request])[0].token_ids == reference.complete([request])[0].token_ids


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        (Grammar("choice", ("yes", "no")), ("yes", "no")),
        (Grammar("regex", ("(10|20|30)",)), ("10", "20", "30")),
        (Grammar("json_schema", ('{"const": "go"}',)), ('"go"',)),
        (Grammar("tagged_json", ("<call>", '{"const": "go"}', "</call>")), ('<call>"go"</call>',)),
    ],
)
def test_a_grammar_holds_the_reply(engine: VLLMEngine, backbone: Backbone, grammar: Grammar, texts: tuple[str, ...]) -> None:
    for name in NAMES:
        (found,) = engine.complete([asked(backbone, name, grammar=grammar, max_new_tokens=24)])
        assert found.text in texts and found.finish_reason == "stop"


def test_a_grammar_that_cannot_be_read_fails_its_request_alone(engine: VLLMEngine, backbone: Backbone) -> None:
    with pytest.raises(BadGrammar, match="regex"):
        engine.complete([asked(backbone, grammar=Grammar("regex", ("[",)))])
    assert engine.complete([asked(backbone)])[0].finish_reason == "length"


def test_a_bias_a_least_length_and_ends_of_ones_own_are_followed(engine: VLLMEngine, backbone: Backbone) -> None:
    (end,) = backbone.stop_ids
    requests = [
        asked(backbone, logit_bias=((50, 100.0),)),
        asked(backbone, logit_bias=((end, 100.0),), min_new_tokens=5),
        asked(backbone, logit_bias=((end, 100.0),), ignore_end=True),
        asked(backbone, logit_bias=((50, 100.0),), stop_ids=(50,)),
    ]
    biased, late, endless, ended = engine.complete(requests)
    assert set(biased.token_ids) == {50}
    assert late.token_ids.index(end) == 5 and late.finish_reason == "stop"
    assert endless.token_ids == (end,) * 12
    assert (ended.token_ids, ended.finish_reason) == ((50,), "stop")


def test_a_stop_text_ends_the_reply_and_is_not_returned(engine: VLLMEngine, reference: TorchEngine, backbone: Backbone) -> None:
    (whole,) = reference.complete([asked(backbone, "one")])
    stop = whole.text[3:5]
    (found,) = engine.complete([asked(backbone, "one", stop=(stop,))])
    assert found.text == whole.text[: whole.text.index(stop)] and found.finish_reason == "stop"
    (included,) = engine.complete([asked(backbone, "one", stop=(stop,), includes_stop=True)])
    assert included.text == found.text + stop


def test_a_prompt_is_read_back_as_it_is_scored(engine: VLLMEngine, reference: TorchEngine, backbone: Backbone) -> None:
    request = asked(backbone, "one", max_new_tokens=0, num_prompt_logprobs=1)
    (found,) = engine.complete([request])
    assert tuple(one.token_id for one in found.prompt) == request.prompt_ids
    assert found.token_ids == () and found.prompt[0].logprob is None
    (expected,) = reference.score([Continuation(request.prompt_ids[:1], request.prompt_ids[1:])], "one")
    assert [one.logprob for one in found.prompt[1:]] == pytest.approx(expected, abs=1e-3)
    assert all(len(one.top) == 1 and one.top[0].logprob >= (one.logprob or 0) for one in found.prompt[1:])


def test_a_prompt_with_soft_thoughts_is_not_read_back(engine: VLLMEngine, backbone: Backbone) -> None:
    with pytest.raises(CannotRun, match="soft thoughts"):
        engine.complete([asked(backbone, "soft", num_prompt_logprobs=0)])


def test_draws_with_one_seed_are_one_reply(engine: VLLMEngine, backbone: Backbone) -> None:
    drawn = [
        engine.complete([asked(backbone, "one", temperature=1.0, top_k=20, min_p=0.01, seed=seed)])[0].token_ids
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_was_read_is_shared_within_an_adapter_and_a_tenant_alone(engine: VLLMEngine, backbone: Backbone) -> None:
    # On a CPU what was read is kept in blocks of 128 tokens, each with all that stands before it.
    question = f"Not asked before. {' '.join(QUESTIONS)} " * 4
    assert 128 < len(backbone.chat_ids(question)) < 250
    shared = []
    for name, salt in (("one", ""), ("one", ""), ("two", ""), ("one", "tenant"), (None, ""), ("one", "")):
        before = engine.stats().cached_tokens
        engine.complete([asked(backbone, name, question, max_new_tokens=1, cache_salt=salt)])
        shared.append(engine.stats().cached_tokens > before)
    assert shared == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("part", "adapter"), [("rank", lambda b: fitted_lora(b, 9, rank=32)), ("steering", lambda b: random_steering(b))]
)
def test_what_vllm_does_not_run_is_refused_by_name_and_nothing_is_loaded(
    engine: VLLMEngine, backbone: Backbone, part: str, adapter: Any
) -> None:
    with pytest.raises(RefusedAdapter, match=part):
        engine.load("refused", Profile((adapter(backbone),)))
    with pytest.raises(UnknownProfile):
        engine.profile("refused")


def test_what_vllm_itself_refuses_leaves_it_alive_and_no_file_behind(engine: VLLMEngine, backbone: Backbone) -> None:
    slots = engine._client.slots
    before = sorted(slots._home.iterdir())
    with pytest.raises(RefusedAdapter, match="rank 32"):
        engine._thread.run(slots.hold("past the gate", fitted_lora(backbone, 9, rank=32).contribution()))
    assert sorted(slots._home.iterdir()) == before
    assert engine.death is None


def test_a_name_loaded_again_answers_with_its_new_weights(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone, profiles: dict[str, Profile]
) -> None:
    # Long enough for vLLM to keep what it read of it, in blocks of 128 tokens: the second weights must not find it.
    question = f"Asked of both. {' '.join(QUESTIONS)} " * 4
    engine.load("changing", profiles["one"])
    first = engine._loaded["changing"].held
    under_the_first = [engine.complete([asked(backbone, "changing", question)])[0].token_ids for _ in range(2)]
    assert under_the_first == [reference.complete([asked(backbone, "one", question)])[0].token_ids] * 2
    engine.load("changing", profiles["two"])
    second = engine._loaded["changing"].held
    assert first is not None and second is not None
    assert second.number > first.number and second.name != first.name and second.files.directory != first.files.directory
    under_the_second = engine.complete([asked(backbone, "changing", question)])[0].token_ids
    assert under_the_second == reference.complete([asked(backbone, "two", question)])[0].token_ids != under_the_first[0]
    engine.unload("changing")
    with pytest.raises(UnknownProfile):
        engine.complete([asked(backbone, "changing")])


def test_more_adapters_than_a_batch_holds_wait_for_their_turn(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone, profiles: dict[str, Profile]
) -> None:
    many = {f"many {number}": Profile((fitted_lora(backbone, 20 + number),)) for number in range(6)}
    for name, profile in many.items():
        engine.load(name, profile)
        reference.load(name, profile)
    requests = [asked(backbone, name) for name in (None, *many)]
    found, expected = engine.complete(requests), reference.complete(requests)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    for name in many:
        engine.unload(name)


def test_a_stream_gives_a_delta_a_token_and_closing_it_frees_its_row(engine: VLLMEngine, backbone: Backbone) -> None:
    async def streams() -> list[Delta]:
        whole = [delta async for delta in engine.generate(asked(backbone, "both"))]
        stream = engine.generate(asked(backbone, "one", max_new_tokens=150))
        await anext(aiter(stream))
        with pytest.raises(EngineError, match="in flight"):
            engine.unload("one")
        await stream.aclose()  # type: ignore[attr-defined]
        return whole

    whole = asyncio.run(streams())
    (expected,) = engine.complete([asked(backbone, "both")])
    assert tuple(delta.token_id for delta in whole) == expected.token_ids
    assert "".join(delta.text for delta in whole) == expected.text
    ends = time.monotonic() + 10
    while engine.stats().running or engine._client._llm.get_num_unfinished_requests():
        assert time.monotonic() < ends, "the row of a closed stream is still there"
        time.sleep(0.05)


def test_a_request_past_its_deadline_ends(engine: VLLMEngine, backbone: Backbone) -> None:
    with pytest.raises(TimedOut):
        engine.complete([asked(backbone, deadline=time.monotonic() - 1)])


def test_what_does_not_fit_into_the_context_is_refused(engine: VLLMEngine, backbone: Backbone) -> None:
    with pytest.raises(PromptTooLong, match="at most 256"):
        engine.complete([GenerationRequest(tuple(range(5, 205)), max_new_tokens=100)])


def test_nan_is_never_answered_with_and_ends_the_engine_where_it_spreads(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone, profiles: dict[str, Profile], tmp_path: Path
) -> None:
    """Files that pass no gate of ours, under a number that vLLM has not read yet."""
    engine.load("nan", Profile((fitted_lora(backbone, 30),)))
    loaded = engine._loaded["nan"]
    assert loaded.held is not None
    directory = Path(shutil.copytree(loaded.held.files.directory, tmp_path / "nan"))
    weights = load_file(directory / "adapter_model.safetensors")
    nan = {key: torch.full_like(tensor, torch.nan) for key, tensor in weights.items()}
    save_file(nan, directory / "adapter_model.safetensors")
    damaged = replace(loaded.held, name="nan#0", number=10_000, files=replace(loaded.held.files, directory=directory))
    engine._loaded["nan"] = replace(loaded, held=damaged)
    with pytest.raises(NotFinite):
        engine.complete([asked(backbone, "nan")])
    with pytest.raises(NotFinite, match="not asked again"):
        engine.complete([asked(backbone, "nan")])
    others = [asked(backbone, name, QUESTIONS[1]) for name in NAMES]
    for expected, found in zip(reference.complete(others), engine.complete(others), strict=True):
        assert found.token_ids == expected.token_ids
    engine._not_finite.add("one")  # as if what it left had reached another's rows
    try:
        assert engine.death is not None
        with pytest.raises(EngineDied, match="NaN"):
            engine.complete([asked(backbone)])
    finally:
        engine._not_finite.clear()
    engine._loaded["nan"] = loaded
    engine.unload("nan")


def test_thoughts_that_overflow_for_one_prompt_fail_it_alone(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone
) -> None:
    engine.load("overflows", Profile((OverflowsFor(backbone.chat_ids(QUESTIONS[1])),)))
    with pytest.raises(NotFinite, match="Soft thoughts"):
        engine.complete([asked(backbone, "overflows", QUESTIONS[1])])
    with pytest.raises(NotFinite, match="Soft thoughts"):
        engine.score([Continuation(backbone.chat_ids(QUESTIONS[1]), (5, 6))], "overflows")
    assert engine.death is None and len(engine.complete([asked(backbone, "overflows")])[0].token_ids) > 0
    others = [asked(backbone, name, QUESTIONS[1]) for name in NAMES]
    for expected, found in zip(reference.complete(others), engine.complete(others), strict=True):
        assert found.token_ids == expected.token_ids
    engine.unload("overflows")


def test_each_set_of_thoughts_of_a_profile_writes_its_own_reply(
    engine: VLLMEngine, reference: TorchEngine, backbone: Backbone
) -> None:
    """Their prompts have the same tokens, and a prompt that was read under one set is no prefix of another's."""
    question = f"Thought about twice. {' '.join(QUESTIONS)} " * 4
    several = Profile((fitted(SoftCoT(SoftCoTSpec(num_thoughts=3, num_chains=2, assistant_layers=1, seed=6)), backbone, 6),))
    for one in (engine, reference):
        one.load("several", several)
    requests = [asked(backbone, "several", question, chain=chain) for chain in (0, 1, 0)]
    found = [engine.complete([request])[0].token_ids for request in requests]
    assert found == [reference.complete([request])[0].token_ids for request in requests] and found[0] != found[1]
    for one in (engine, reference):
        one.unload("several")


def test_where_vllms_process_ends_every_request_is_told_so(engine: VLLMEngine, backbone: Backbone) -> None:
    """The last of this file: there is no engine after it."""
    for process in engine._client._llm.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)
    ends = time.monotonic() + 30
    while engine.death is None:
        assert time.monotonic() < ends, "nobody noticed"
        time.sleep(0.1)
    with pytest.raises(EngineDied):
        engine.complete([asked(backbone)])
    with pytest.raises(EngineDied):
        engine.load("late", Profile((fitted_lora(backbone, 1),)))
