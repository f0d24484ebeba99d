"""The PyTorch engine: rows that share a batch never see each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from fitted import OverflowsFor, fitted_lora, fitted_softcot

from adapters.backbone import Backbone, fast_bfloat16
from adapters.errors import DamagedAdapter
from engine.counts import UNLOADED
from engine.engine import Completion, Continuation, Delta, GenerationRequest
from engine.errors import EngineError, NotFinite, PromptTooLong, UnknownProfile
from engine.profile import DecodingPolicy, Profile
from engine.text import TextStream
from engine.torch_engine import TorchEngine

QUESTIONS = (
    "Start with 12. Add 5.",
    "Which chapter of ICD-10 is it in? Options: skin diseases; ear diseases; eye diseases",
    "Take the number 7, then add 3, then take away 2, then times 4. What number do you get?",
    "Diagnosis: Cholera",
)


@pytest.fixture
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    engine = TorchEngine(backbone, max_rows=3)
    engine.load("one", Profile((fitted_lora(backbone, 1),)))
    engine.load("two", Profile((fitted_lora(backbone, 2, rank=2),)))
    engine.load("soft", Profile((fitted_softcot(backbone, 3),)))
    engine.load("both", Profile((fitted_lora(backbone, 4), fitted_softcot(backbone, 5))))
    yield engine
    engine.close()


def requests(backbone: Backbone, **changes: object) -> list[GenerationRequest]:
    """Rows of every profile, of different prompts and lengths, so that they join and leave at different steps."""
    profiles = (None, "one", "two", "soft", "both")
    return [
        GenerationRequest(backbone.chat_ids(question), profile, max_new_tokens=4 + (3 * index + 5 * place) % 17, **changes)  # type: ignore[arg-type]
        for index, question in enumerate(QUESTIONS)
        for place, profile in enumerate(profiles)
    ]


def assert_same(one: Completion, two: Completion) -> None:
    assert one.token_ids == two.token_ids
    assert one.text == two.text
    assert one.finish_reason == two.finish_reason
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-4, rtol=1e-4)


def plain_greedy(backbone: Backbone, ids: tuple[int, ...], count: int) -> list[int]:
    """Greedy decoding as one forward a token, without a cache."""
    written: list[int] = []
    while len(written) < count and not (written and written[-1] in backbone.stop_ids):
        with torch.no_grad():
            logits_V = backbone.model(torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
        written.append(int(logits_V.argmax()))
    return written


def test_rows_of_all_profiles_equal_their_solo_runs(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone)
    together = engine.complete(asked)
    for request, completion in zip(asked, together, strict=True):
        assert_same(completion, engine.complete([request])[0])
    assert len({completion.token_ids for completion in together}) > len(QUESTIONS)


def test_the_same_call_gives_bit_identical_completions(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone, temperature=0.8, top_p=0.9)
    assert engine.complete(asked) == engine.complete(asked)


def test_greedy_rows_equal_forwards_without_a_cache(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[2])
    completion = engine.complete([GenerationRequest(ids, max_new_tokens=20)])[0]
    assert list(completion.token_ids) == plain_greedy(backbone, ids, 20)


def test_a_profile_writes_what_the_attached_adapter_writes(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[0])
    with fitted_lora(backbone, 1).attach(backbone):
        expected = plain_greedy(backbone, ids, 12)
    assert list(engine.complete([GenerationRequest(ids, "one", 12)])[0].token_ids) == expected


@pytest.mark.parametrize("profile", [None, "one", "soft", "both"])
def test_a_reply_goes_on_from_how_it_began(engine: TorchEngine, backbone: Backbone, profile: str | None) -> None:
    # Soft thoughts stand in the prompt, so they must not depend on what was already written.
    ids = backbone.chat_ids(QUESTIONS[2])
    whole = engine.complete([GenerationRequest(ids, profile, 12)])[0].token_ids
    assert len(whole) > 4
    assert engine.complete([GenerationRequest(ids, profile, 12 - 4, begun_ids=whole[:4])])[0].token_ids == whole[4:]


def test_a_character_that_began_before_is_not_lost(engine: TorchEngine, backbone: Backbone) -> None:
    ids, begun = backbone.chat_ids(QUESTIONS[0]), tuple(backbone.encode("é"))
    assert len(begun) == 2 and backbone.decode(begun[:1]) == "\ufffd"
    found = TextStream(backbone.decode, (), begun[:1])
    found.add(begun[1])
    assert found.advance(final=True) == "é"
    done = engine.complete([GenerationRequest(ids, None, 6, begun_ids=begun)])[0]
    assert backbone.decode((*begun, *done.token_ids)).rstrip("\ufffd") == "é" + done.text


def test_the_likeliest_tokens_are_listed_where_they_are_asked_for(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[2])
    plain, listed, wide = engine.complete(
        [GenerationRequest(ids, "both", 6), *(GenerationRequest(ids, "both", 6, top_logprobs=count) for count in (2, 5))]
    )
    assert plain.top_logprobs == () and plain.token_ids == listed.token_ids
    assert [[len(place) for place in done.top_logprobs] for done in (listed, wide)] == [[2] * 6, [5] * 6]
    for place, token, logprob in zip(listed.top_logprobs, listed.token_ids, listed.logprobs, strict=True):
        assert place[0].token_id == token and place[0].logprob == pytest.approx(logprob) and place[0].logprob >= place[1].logprob
    second = wide.top_logprobs[0][1]
    scored = engine.score([Continuation(ids, (second.token_id,))], "both")[0][0]
    assert second.logprob == pytest.approx(scored, abs=1e-4)


def test_a_loaded_profile_can_be_had_back(engine: TorchEngine) -> None:
    profile = Profile()
    engine.load("mine", profile)
    assert engine.profile("mine") is profile
    with pytest.raises(UnknownProfile, match="'absent'"):
        engine.profile("absent")


def test_a_seed_decides_whatever_the_neighbours_are(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[1])
    asked = GenerationRequest(ids, "one", 12, temperature=1.0, seed=7)
    alone = engine.complete([asked])[0]
    beside = engine.complete([*requests(backbone, temperature=1.0), asked])[-1]
    assert_same(alone, beside)
    other = engine.complete([GenerationRequest(ids, "one", 12, temperature=1.0, seed=8)])[0]
    assert other.token_ids != alone.token_ids


def test_top_p_of_almost_nothing_is_greedy(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[1])
    greedy, nucleus = engine.complete(
        [GenerationRequest(ids, None, 12), GenerationRequest(ids, None, 12, temperature=1.0, top_p=1e-6, seed=1)]
    )
    assert_same(greedy, nucleus)


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-40, 1.0), (1e-320, 1.0), (1.0, 1e-320)])
def test_what_is_colder_than_numbers_go_is_greedy_and_no_row_fails(
    engine: TorchEngine, backbone: Backbone, temperature: float, top_p: float
) -> None:
    ids = backbone.chat_ids("Hi")
    asked = GenerationRequest(ids, None, 12, seed=1, temperature=temperature, top_p=top_p)
    drawn, beside = engine.complete([asked, GenerationRequest(ids, None, 12)])
    assert drawn.token_ids == beside.token_ids


def test_an_open_temperature_is_the_policy_of_the_profile(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[1])
    engine.load("warm", Profile(policy=DecodingPolicy(temperature=1.0)))
    warm, asked = engine.complete(
        [GenerationRequest(ids, "warm", 12, seed=3), GenerationRequest(ids, None, 12, temperature=1.0, seed=3)]
    )
    assert_same(warm, asked)


def test_logprobs_are_of_the_model_before_temperature(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[3])
    for profile in (None, "one", "both"):
        written = engine.complete([GenerationRequest(ids, profile, 10, temperature=1.5, seed=2)])[0]
        scored = engine.score([Continuation(ids, written.token_ids)], profile)[0]
        torch.testing.assert_close(torch.tensor(written.logprobs), torch.tensor(scored), atol=1e-4, rtol=1e-4)


def test_a_stop_text_ends_the_completion_and_is_not_returned(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[1])
    whole = engine.complete([GenerationRequest(ids, None, 24)])[0].text
    stop = whole[5:9]
    cut = engine.complete([GenerationRequest(ids, None, 24, stop=(stop,))])[0]
    assert cut.text == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


def test_a_stop_token_ends_the_completion(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTIONS[1])
    asked = [GenerationRequest(ids, None, 200, temperature=2.0, seed=seed) for seed in range(12)]
    stopped = [completion for completion in engine.complete(asked) if completion.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] in backbone.stop_ids
        assert not set(completion.token_ids[:-1]) & backbone.stop_ids
        assert "<|im_end|>" not in completion.text


def test_a_prompt_that_leaves_no_room_is_refused(engine: TorchEngine, backbone: Backbone) -> None:
    ids = backbone.chat_ids("word " * 300)[: backbone.context_length - 5]
    assert len(engine.complete([GenerationRequest(ids, None, 5)])[0].token_ids) <= 5
    with pytest.raises(PromptTooLong, match=f"at most {backbone.context_length} tokens"):
        engine.complete([GenerationRequest(ids, None, 6)])
    with pytest.raises(PromptTooLong, match="Shorten the prompt"):
        engine.complete([GenerationRequest(ids, "soft", 5)])


@pytest.mark.parametrize(
    "changes", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"prompt_ids": ()}, {"top_logprobs": 21}]
)
def test_impossible_requests_are_refused(engine: TorchEngine, backbone: Backbone, changes: dict[str, object]) -> None:
    values = {"prompt_ids": backbone.chat_ids("Hi"), **changes}
    with pytest.raises(ValueError, match="must|at least"):
        engine.complete([GenerationRequest(**values)])  # type: ignore[arg-type]


def test_an_unknown_profile_error_lists_what_is_loaded(engine: TorchEngine, backbone: Backbone) -> None:
    with pytest.raises(UnknownProfile, match="'three'.*both, one, soft, two"):
        engine.complete([GenerationRequest(backbone.chat_ids("Hi"), "three")])
    engine.unload("two")
    with pytest.raises(UnknownProfile, match="Loaded: both, one, soft"):
        engine.score([Continuation((1, 2), (3,))], "two")


def test_an_adapter_with_nan_is_refused_and_nothing_changes(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone)
    before = engine.complete(asked)
    broken = fitted_lora(backbone, 6)
    key = next(key for key in broken.tensors() if key.endswith("layers.1.mlp.up_proj.lora_B.weight"))
    broken.tensors()[key][0, 0] = float("nan")
    for name in ("one", "new"):
        with pytest.raises(DamagedAdapter, match="model.layers.1.mlp.up_proj"):
            engine.load(name, Profile((broken,)))
    assert engine.complete(asked) == before
    assert engine.loaded == ("one", "two", "soft", "both")


def test_soft_thoughts_with_nan_are_refused(engine: TorchEngine, backbone: Backbone) -> None:
    broken = fitted_softcot(backbone, 6)
    broken.transform(backbone, Profile().transform(backbone, backbone.chat_ids("Hi")))
    with broken.attach(backbone), torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(DamagedAdapter, match="soft thoughts of 'new'"):
        engine.load("new", Profile((broken,)))
    assert "new" not in engine.loaded


def test_thoughts_that_overflow_for_one_prompt_fail_it_alone(engine: TorchEngine, backbone: Backbone) -> None:
    """They pass the load gate, which asks about another prompt."""
    engine.load("overflows", Profile((OverflowsFor(backbone.chat_ids("This one.")),)))
    others = [GenerationRequest(backbone.chat_ids("Another."), name, 8) for name in ("soft", None, "overflows")]
    before = engine.complete(others)
    for _ in range(2):
        with pytest.raises(NotFinite, match="Soft thoughts"):
            engine.complete([GenerationRequest(backbone.chat_ids("This one."), "overflows", 8)])
        with pytest.raises(NotFinite, match="Soft thoughts"):
            engine.score([Continuation(backbone.chat_ids("This one."), (5, 6))], "overflows")
        assert engine.complete(others) == before


def test_a_row_that_is_not_finite_fails_alone(engine: TorchEngine, backbone: Backbone) -> None:
    # Finite weights that overflow: they pass the load gate and fail in the forward.
    huge = fitted_lora(backbone, 6)
    for tensor in huge.tensors().values():
        tensor.mul_(1e30)
    engine.load("huge", Profile((huge,)))
    asked = requests(backbone)
    before = engine.complete(asked)
    # The longest prompt: rows that get its place in the cache do not write over all of it.
    poisoned = GenerationRequest(max((backbone.chat_ids(question) for question in QUESTIONS), key=len), "huge", 8)

    async def text(request: GenerationRequest) -> Completion | Exception:
        try:
            return await gathered(engine, request)
        except NotFinite as error:
            return error

    async def everything() -> list[Completion | Exception]:
        return await asyncio.gather(*(text(request) for request in (*asked[:7], poisoned, *asked[7:14], poisoned, *asked[14:])))

    found = asyncio.run(everything())
    assert [index for index, each in enumerate(found) if isinstance(each, NotFinite)] == [7, 15]
    healthy = [each for each in found if isinstance(each, Completion)]
    for ours, expected in zip(healthy, before, strict=True):
        assert_same(ours, expected)


async def gathered(engine: TorchEngine, request: GenerationRequest) -> Completion:
    deltas = [delta async for delta in engine.generate(request)]
    assert deltas[-1].finish_reason is not None
    token_ids = tuple(delta.token_id for delta in deltas if delta.token_id is not None)
    logprobs = tuple(delta.logprob for delta in deltas if delta.logprob is not None)
    text = "".join(delta.text for delta in deltas)
    return Completion(text, token_ids, logprobs, deltas[-1].finish_reason, len(request.prompt_ids))


def test_streams_equal_completions(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone)
    expected = engine.complete(asked)

    async def everything() -> list[Completion]:
        return await asyncio.gather(*(gathered(engine, request) for request in asked))

    for ours, theirs in zip(asyncio.run(everything()), expected, strict=True):
        assert_same(ours, theirs)


def test_complete_and_score_are_safe_while_streams_run(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone)
    continuation = Continuation(backbone.chat_ids("Hi"), (9, 10, 11))
    completed, scored = engine.complete(asked), engine.score([continuation], "both")

    async def everything() -> tuple[Completion, list[Completion], list[tuple[float, ...]]]:
        stream = GenerationRequest(backbone.chat_ids("Hi"), "one", 300, temperature=1.0, seed=1)
        long = asyncio.create_task(gathered(engine, stream))
        await asyncio.sleep(0.02)
        others = asyncio.to_thread(engine.complete, asked), asyncio.to_thread(engine.score, [continuation], "both")
        return await long, *await asyncio.gather(*others)

    _, during, scored_during = asyncio.run(everything())
    for ours, theirs in zip(during, completed, strict=True):
        assert_same(ours, theirs)
    torch.testing.assert_close(torch.tensor(scored_during), torch.tensor(scored), atol=1e-4, rtol=1e-4)


def test_a_closed_stream_frees_its_row(engine: TorchEngine, backbone: Backbone) -> None:
    async def stop_early() -> list[Delta]:
        stream = engine.generate(GenerationRequest(backbone.chat_ids("Hi"), "one", 400, temperature=3.0, seed=1))
        first = [await anext(stream), await anext(stream)]
        with pytest.raises(EngineError, match="'one' has 1 in flight"):
            engine.unload("one")
        await stream.aclose()  # type: ignore[attr-defined]
        while engine.stats().running:
            await asyncio.sleep(0.001)
        return first

    assert len(asyncio.run(asyncio.wait_for(stop_early(), 20))) == 2
    engine.unload("one")
    assert "one" not in engine.loaded


def test_a_refused_request_raises_in_its_stream(engine: TorchEngine) -> None:
    with pytest.raises(UnknownProfile, match="Loaded: both"):
        asyncio.run(gathered(engine, GenerationRequest((1, 2), "three")))


def test_refresh_reads_live_weights_exactly_once_while_attached(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    lora = fitted_lora(backbone, 1)
    continuation = Continuation(backbone.chat_ids("Hi"), (9, 10, 11))
    base = engine.score([continuation])
    engine.load("live", Profile((lora,)))
    detached = engine.score([continuation], "live")
    with lora.attach(backbone):
        assert engine.score([continuation]) == base
        assert engine.score([continuation], "live") == detached
        assert TorchEngine(backbone).score([continuation]) == base
        with torch.no_grad():
            for parameter in lora.parameters():
                parameter.add_(0.05)
        assert engine.score([continuation], "live") == detached
        engine.refresh("live")
        stepped = engine.score([continuation], "live")
        assert stepped != detached
    assert engine.score([continuation], "live") == stepped
    engine.close()


def test_the_backbone_is_never_touched(backbone: Backbone) -> None:
    ids_BT = torch.tensor([backbone.chat_ids(QUESTIONS[0])])
    digest = backbone.weights_digest()
    before = backbone.model(ids_BT).logits
    engine = TorchEngine(backbone)
    engine.load("one", Profile((fitted_lora(backbone, 1),)))
    engine.complete(requests_of_one(backbone))
    assert torch.equal(backbone.model(ids_BT).logits, before)
    engine.close()
    assert torch.equal(backbone.model(ids_BT).logits, before)
    assert backbone.weights_digest() == digest
    assert torch.equal(engine._twin.model(ids_BT).logits, before)


def requests_of_one(backbone: Backbone) -> list[GenerationRequest]:
    return [GenerationRequest(backbone.chat_ids(question), "one", 5) for question in QUESTIONS]


def test_a_small_cache_only_makes_rows_wait(backbone: Backbone) -> None:
    wide, narrow = TorchEngine(backbone), TorchEngine(backbone, max_batch_tokens=64, max_cache_tokens=150)
    for engine in (wide, narrow):
        engine.load("one", Profile((fitted_lora(backbone, 1),)))
    asked = requests_of_one(backbone)
    for one, two in zip(wide.complete(asked), narrow.complete(asked), strict=True):
        assert_same(one, two)


def test_stats_count_tokens_by_profile(engine: TorchEngine, backbone: Backbone) -> None:
    asked = requests(backbone)
    completions = engine.complete(asked)
    ours = sum(len(done.token_ids) for request, done in zip(asked, completions, strict=True) if request.profile == "two")
    assert engine.stats().generated_tokens["two"] == ours and engine.stats().generated_tokens[""] > 0
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_profiles_that_come_and_go_leave_no_counts_of_their_own(backbone: Backbone) -> None:
    engine, lora, ids = TorchEngine(backbone), fitted_lora(backbone, 1), tuple(backbone.encode("Add 5."))
    totals = []
    for number in range(4):
        engine.load(name := f"visitor-{number}", Profile((lora,)))
        engine.complete([GenerationRequest(ids, name, 3, ignore_end=True)])
        engine.score([Continuation(ids[:1], ids[1:])], name)
        totals.append(engine.stats().forward_tokens)
        engine.unload(name)
        assert engine.stats().forward_tokens == totals[-1], "what was counted stays in the sum"
    assert engine.stats().generated_tokens == {UNLOADED: 12}
    assert not engine._readings
    engine.close()


def test_low_precision_stays_near_float32(backbone: Backbone) -> None:
    exact, low = TorchEngine(backbone, precision="float32"), TorchEngine(backbone, precision="bfloat16")
    continuation = Continuation(backbone.chat_ids("Hi"), tuple(range(9, 40)))
    for engine in (exact, low):
        engine.load("one", Profile((fitted_lora(backbone, 1),)))
    one, two = (torch.tensor(engine.score([continuation], "one")[0]) for engine in (exact, low))
    assert (one - two).abs().mean() < 0.1
    assert TorchEngine(backbone).score([continuation]) == exact.score([continuation])
    assert torch.equal(one, two) != fast_bfloat16(backbone.device)
    assert len(low.complete([GenerationRequest(backbone.chat_ids("Hi"), "one", 8, temperature=1.0)])[0].token_ids) == 8
