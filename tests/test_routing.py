"""Hybrid routing in the engine: where the two models agree nothing happens, where they differ one vector, and rows stay apart."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora, fitted_softcot

from adapters.backbone import TESTBED, Backbone
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.routing import FOLDER, WEIGHTS, Routing, RoutingSpec
from adapters.sentences import SentenceMean
from engine.decoding.budget import Budget
from engine.decoding.row_policy import refuse_unable
from engine.engine import Completion, Continuation, GenerationRequest
from engine.errors import CannotRun, EngineError
from engine.oracle import Router
from engine.profile import PROFILE, DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.task import reasoning_prompt
from evaluation.tasks import TASKS


@pytest.fixture(scope="module")
def reader() -> Backbone:
    return Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32)


def drawn_routing(backbone: Backbone, strength: float = 8.0, count: int = 3) -> Routing:
    generator = torch.Generator().manual_seed(7)
    directions_KH, encoder_KH = (torch.randn(count, backbone.hidden_size, generator=generator) for _ in range(2))
    return Routing(
        RoutingSpec(layer=0, read_layer=1),
        backbone.fingerprint,
        encoder_KH,
        torch.zeros(count),
        directions_KH / directions_KH.norm(dim=1, keepdim=True),
        torch.full((count,), strength),
    )


@pytest.fixture(scope="module")
def engine(reader: Backbone) -> Iterator[TorchEngine]:
    engine = TorchEngine(reader, max_rows=5)
    lora, routing = fitted_lora(reader, 1), drawn_routing(reader)
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=12))
    profiles = {
        "lora": Profile((lora,)),
        "routed": Profile((lora,), routing=routing),
        "bare": Profile((lora,), routing=replace(routing, strengths_K=torch.zeros(3))),
        "capped": Profile((lora,), policy, routing),
        "thoughts": Profile((fitted_softcot(reader, 2),), routing=routing),
        "placed": Profile((lora,), routing=routing.at_random_places(0.5, 3)),
        "sorted": Profile((lora,), routing=routing.with_random_categories(3)),
    }
    for name, profile in profiles.items():
        engine.load(name, profile)
    yield engine
    engine.close()


ROUTED = ("routed", "capped", "thoughts", "placed", "sorted")


@pytest.fixture(scope="module")
def asked(engine: TorchEngine) -> list[GenerationRequest]:
    """Routed and other rows on prompts of several lengths, so that they join and leave at different steps."""
    prompts = [engine.backbone.chat_ids(reasoning_prompt(one)) for one in TASKS["alchemy"].examples("search", 2)]
    return [GenerationRequest(ids, name, 30 + 3 * place) for name in (*ROUTED, None, "lora") for place, ids in enumerate(prompts)]


@contextmanager
def shifted_last(backbone: Backbone, shift_H: torch.Tensor) -> Iterator[None]:
    def add(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        moved = output.clone()
        moved[:, -1] += shift_H
        return moved

    hook = backbone.layers[0].register_forward_hook(add)
    yield
    hook.remove()


def assert_same(one: Completion, two: Completion) -> None:
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-3, rtol=1e-3)
    assert (one.token_ids, one.text, one.finish_reason) == (two.token_ids, two.text, two.finish_reason)


def test_a_mixed_batch_writes_what_each_row_writes_alone(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    for request, together in zip(asked, engine.complete(asked), strict=True):
        assert_same(engine.complete([request])[0], together)


def test_rows_without_routing_are_unchanged_beside_routed_ones(
    engine: TorchEngine, reader: Backbone, asked: list[GenerationRequest]
) -> None:
    plain = TorchEngine(reader)
    plain.load("lora", Profile((fitted_lora(reader, 1),)))
    others = [request for request in asked if request.profile in (None, "lora")]
    together = dict(zip(map(id, asked), engine.complete(asked), strict=True))
    for request, alone in zip(others, plain.complete(others), strict=True):
        assert_same(together[id(request)], alone)


def test_streamed_rows_write_the_same(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    async def one(request: GenerationRequest) -> Completion:
        return Completion.of(request, [delta async for delta in engine.generate(request)])

    async def together() -> list[Completion]:
        return await asyncio.gather(*map(one, asked))

    for streamed, complete in zip(asyncio.run(together()), engine.complete(asked), strict=True):
        assert (streamed.token_ids, streamed.text) == (complete.token_ids, complete.text)


def test_vectors_of_no_strength_leave_the_backbone_that_it_is(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    request = replace(asked[0], profile=None)
    assert_same(engine.complete([replace(request, profile="bare")])[0], engine.complete([request])[0])


def test_steering_changes_what_the_backbone_writes_and_is_counted(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    before = engine.stats()
    routed, own = engine.complete([asked[0], replace(asked[0], profile=None)])
    after = engine.stats()
    steered = after.steered_tokens["routed"] - before.steered_tokens.get("routed", 0)
    assert routed.text != own.text and 0 < steered <= len(routed.token_ids)
    # The oracle reads every token but the last, and each steered one is read once more.
    assert after.beside_tokens - before.beside_tokens == len(routed.token_ids) - 1 + steered


@pytest.mark.parametrize("name", ROUTED)
def test_what_was_written_scores_as_it_was_written(engine: TorchEngine, asked: list[GenerationRequest], name: str) -> None:
    request = next(request for request in asked if request.profile == name)
    done = engine.complete([replace(request, policy=DecodingPolicy())])[0]
    (scored,) = engine.score([Continuation(request.prompt_ids, done.token_ids)], name)
    torch.testing.assert_close(torch.tensor(scored), torch.tensor(done.logprobs), atol=1e-3, rtol=1e-3)


def test_a_reply_that_was_begun_goes_on_as_it_would_have(engine: TorchEngine, asked: list[GenerationRequest]) -> None:
    whole = engine.complete([asked[0]])[0]
    begun = replace(asked[0], begun_ids=whole.token_ids[:9], max_new_tokens=asked[0].max_new_tokens - 9)
    assert engine.complete([begun])[0].token_ids == whole.token_ids[9:]


def test_a_steered_token_is_what_one_shift_at_its_place_makes_of_a_plain_forward(
    engine: TorchEngine, reader: Backbone, asked: list[GenerationRequest]
) -> None:
    # By transformers alone: at one place a vector is added to what layer 0 puts out, and nowhere else, before or after.
    done = engine.complete([asked[0]])[0]
    ids_BT, first = torch.tensor([(*asked[0].prompt_ids, *done.token_ids)]), len(asked[0].prompt_ids) - 1
    sentence, checked = SentenceMean(reader.decode), 0
    with torch.no_grad():
        own = reader.model(ids_BT).logits[0].argmax(dim=-1).tolist()
        with fitted_lora(reader, 1).attach(reader):
            adapted = reader.model(ids_BT, output_hidden_states=True)
        assert len(reader.layers) > 2  # or the states behind layer 1 would have passed the final norm
        for place, token in enumerate((None, *done.token_ids[:-1])):
            mean_H = sentence.take(token, adapted.hidden_states[2][0, first + place])
            likeliest = int(adapted.logits[0, first + place].argmax())
            shift_H = drawn_routing(reader).shift(mean_H, own[first + place], likeliest, "")
            assert (shift_H is None) == (own[first + place] == likeliest)
            if shift_H is None:
                assert done.token_ids[place] == own[first + place]
                continue
            with shifted_last(reader, shift_H):
                logits_V = reader.model(ids_BT[:, : first + place + 1]).logits[0, -1]
            assert done.token_ids[place] == int(logits_V.argmax())
            assert done.logprobs[place] == pytest.approx(float(logits_V.log_softmax(-1).max()), abs=1e-3)
            checked += 1
    assert checked > 3


def test_an_engine_without_routing_refuses_it_by_name(reader: Backbone) -> None:
    with pytest.raises(CannotRun, match="`routing`, which the engine cannot run"):
        refuse_unable(DecodingPolicy(), frozenset({"generate", "score"}), "the engine", drawn_routing(reader))


def test_a_routing_without_an_adapter_or_of_another_backbone_is_refused(reader: Backbone, backbone: Backbone) -> None:
    with pytest.raises(EngineError, match="'one' has none"):
        TorchEngine(reader).load("one", Profile(routing=drawn_routing(reader)))
    with pytest.raises(BackboneMismatch, match="fit the routing again"):
        TorchEngine(backbone).load("one", Profile((fitted_lora(backbone, 1),), routing=drawn_routing(reader)))
    far = replace(drawn_routing(reader), spec=RoutingSpec(layer=99, read_layer=0))
    with pytest.raises(RefusedAdapter, match="of layers 99 and 0"):
        far.check(reader)


def test_the_inside_of_two_models_is_not_shown(engine: TorchEngine) -> None:
    with pytest.raises(EngineError, match="'routed' routes between two"):
        engine.hidden_states([Continuation((1, 2), ())], ["routed"], [0])


def test_a_routing_is_stored_with_its_profile_and_damage_is_found(reader: Backbone, tmp_path: Path) -> None:
    routing = drawn_routing(reader).at_random_places(0.25, 5)
    Profile((fitted_lora(reader, 1),), routing=routing).save(tmp_path)
    found = Profile.load(tmp_path).routing
    assert found is not None and found.spec == routing.spec
    for one, two in zip(found._tensors().values(), routing._tensors().values(), strict=True):
        torch.testing.assert_close(one, two)
    (tmp_path / FOLDER / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(DamagedAdapter, match="not a whole safetensors file"):
        Profile.load(tmp_path)


def test_a_profile_says_whether_it_is_routed_and_is_not_read_without_its_routing(reader: Backbone, tmp_path: Path) -> None:
    lora = fitted_lora(reader, 1)
    for name, routing in (("plain", None), ("routed", drawn_routing(reader))):
        Profile((lora,), routing=routing).save(tmp_path / name)
        assert json.loads((tmp_path / name / PROFILE).read_text())["is_routed"] is (routing is not None)
    shutil.rmtree(tmp_path / "routed" / FOLDER)
    with pytest.raises(DamagedAdapter, match=r"says that the profile is routed, but .*routing is not there"):
        Profile.load(tmp_path / "routed")
    told = json.loads((tmp_path / "plain" / PROFILE).read_text())
    told.pop("is_routed")  # as it was written before there were routings
    (tmp_path / "plain" / PROFILE).write_text(json.dumps(told))
    assert Profile.load(tmp_path / "plain").routing is None


def test_random_places_come_at_their_rate_and_random_categories_are_those_in_use(reader: Backbone) -> None:
    routing = replace(drawn_routing(reader), strengths_K=torch.tensor([2.0, 0.0, 3.0]))
    mean_H = torch.randn(reader.hidden_size)
    placed = drawn_routing(reader).at_random_places(0.3, 1)
    assert sum(placed.shift(mean_H, 1, 1, str(place)) is not None for place in range(1000)) == pytest.approx(300, abs=50)
    drawn = [routing.with_random_categories(1).shift(mean_H, 1, 2, str(place)) for place in range(200)]
    norms = {round(float(shift_H.norm()), 3) for shift_H in drawn if shift_H is not None}
    assert norms == {2.0, 3.0} and all(shift_H is not None for shift_H in drawn)
    assert drawn_routing(reader).shift(mean_H, 1, 1, "") is None


def test_random_vectors_are_as_long_and_point_elsewhere(reader: Backbone) -> None:
    routing, mean_H = drawn_routing(reader), torch.randn(reader.hidden_size)
    own_H, drawn_H = (one.shift(mean_H, 1, 2, "") for one in (routing, routing.with_random_vectors(1)))
    assert own_H is not None and drawn_H is not None
    torch.testing.assert_close(drawn_H.norm(), own_H.norm())
    assert abs(float(torch.cosine_similarity(own_H, drawn_H, dim=0))) < 0.5


def test_texts_that_begin_alike_are_steered_at_random_places_of_their_own(reader: Backbone) -> None:
    router = Router(drawn_routing(reader).at_random_places(0.3, 1), reader.decode)
    mean_H, reply = torch.randn(reader.hidden_size), (5, 6, 7)
    steered = [router.shift(mean_H, 1, 1, (prompt, *reply)) is not None for prompt in range(1000)]
    assert sum(steered) == pytest.approx(300, abs=50)


def test_a_sentence_ends_with_its_line_or_with_a_full_stop_and_a_space(backbone: Backbone) -> None:
    sentence, text = SentenceMean(backbone.decode), "Add 2.5 to x. Then\nstop"
    ids = [
        token for piece in ("Add", " 2", ".", "5", " to", " x", ".", " Then", "\n", "stop") for token in backbone.encode(piece)
    ]
    assert backbone.decode(ids) == text
    begins, means = [], []
    for value, token in enumerate((None, *ids)):
        means.append(float(sentence.take(token, torch.tensor([float(value)]))[0]))
        if sentence.has_begun:
            begins.append(backbone.decode(ids[max(value - 1, 0) :]) if token is not None else "")
    assert [one[:5] for one in begins] == ["", text[:5], " Then", "stop"]
    assert means[:3] == [0.0, 1.0, 1.5]
