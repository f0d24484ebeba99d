"""Steering vectors: where they act, which way they point, and what they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from fitted import fitted_lora, random_steering
from small_releases import write_release
from torch import Tensor, nn

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, RefusedAdapter
from adapters.lora import adapters_off
from adapters.residual import ResidualShift
from adapters.softcot import SoftCoT, SoftCoTSpec
from adapters.steering import Contrast, Steering, SteeringSpec
from engine.engine import Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from registry.manifest import verify

QUESTION = "Start with 12. Add 5, then take away 3."


def contrasts(backbone: Backbone) -> list[Contrast]:
    pairs = (("12 + 5 = 17", "Well, let us see"), ("7 * 3 = 21", "First of all, I think"))
    return [
        Contrast(backbone.chat_ids(QUESTION), tuple(backbone.encode(wanted)), tuple(backbone.encode(other)))
        for wanted, other in pairs
    ]


def inputs_of_layers(backbone: Backbone, ids: tuple[int, ...], *adapters: Adapter) -> tuple[Tensor, ...]:
    """What every layer reads, [T, H]: for the first, the embeddings."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][0])

    with Stack(adapters).attach(backbone), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(keep) for layer in backbone.layers]
        backbone.model(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
    return tuple(found)


def test_layer_i_is_steered_at_its_output(backbone: Backbone) -> None:
    # Index i of transformers' hidden states is what layer i reads: a vector taken there would be one layer off.
    ids, shift = backbone.chat_ids(QUESTION), random_steering(backbone, layer=0)
    plain, steered = inputs_of_layers(backbone, ids), inputs_of_layers(backbone, ids, shift)
    assert torch.equal(steered[0], plain[0])
    torch.testing.assert_close(steered[1] - plain[1], shift.tensors()["vector"].expand_as(plain[1]))


def test_a_layer_that_returns_a_bare_tensor_is_steered_in_every_row_of_the_batch() -> None:
    states_BTH, vector_H = torch.zeros(3, 2, 4), torch.ones(4)
    shift = ResidualShift(vector_H, 0.5)
    bare, tupled = (shift(torch.nn.Identity(), (), output) for output in (states_BTH, (states_BTH, "cache")))
    assert isinstance(bare, Tensor) and torch.equal(bare, torch.full((3, 2, 4), 0.5))
    assert isinstance(tupled, tuple) and torch.equal(tupled[0], bare) and tupled[1:] == ("cache",)


@pytest.mark.parametrize("pooling", ["last", "mean_cot"])
def test_the_vector_is_the_mean_of_what_is_wanted_less_the_mean_of_the_other(
    backbone: Backbone, pooling: Literal["last", "mean_cot"]
) -> None:
    spec = SteeringSpec(layer=0, pooling=pooling)
    found = Steering.difference_of_means(spec, backbone, contrasts(backbone)).tensors()["vector"]

    def pooled(contrast: Contrast, ids: tuple[int, ...]) -> Tensor:
        states_TH = inputs_of_layers(backbone, (*contrast.prompt_ids, *ids))[1]  # the output of layer 0
        return states_TH[-1] if pooling == "last" else states_TH[len(contrast.prompt_ids) :].mean(dim=0)

    expected = sum(pooled(each, each.wanted_ids) - pooled(each, each.other_ids) for each in contrasts(backbone)) / 2
    torch.testing.assert_close(found, expected)


def test_the_vector_leads_to_what_is_wanted_and_its_negative_away_from_it(backbone: Backbone) -> None:
    engine, asked = TorchEngine(backbone), contrasts(backbone)
    made = Steering.difference_of_means(SteeringSpec(layer=0), backbone, asked)
    for name, factor in (("towards", 0.5), ("away", -0.5)):
        engine.load(name, Profile((made.scaled(factor),)))

    def margin(profile: str | None) -> float:
        scores = [
            engine.score([Continuation(each.prompt_ids, ids) for each in asked], profile)
            for ids in (asked[0].wanted_ids, asked[0].other_ids)
        ]
        wanted, other = (sum(sum(row) / len(row) for row in rows) for rows in scores)
        return wanted - other

    assert margin("away") < margin(None) < margin("towards")


def test_gamma_and_scale_multiply_the_vector(backbone: Backbone) -> None:
    vector_H = torch.ones(backbone.hidden_size)
    made = Steering.of(SteeringSpec(layer=1, gamma=0.5), backbone, vector_H).scaled(0.5)
    assert torch.equal(made.contribution().residual[1], 0.25 * vector_H)


def test_a_share_of_the_depth_names_a_layer() -> None:
    assert SteeringSpec(layer=0.6).index(30) == 18 and SteeringSpec(layer=3).index(30) == 3
    for wrong in (-1, 1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="share of the depth"):
            SteeringSpec(layer=wrong)
    with pytest.raises(RefusedAdapter, match="layers 0 to 29, but layer=30"):
        SteeringSpec(layer=30).index(30)


def test_rows_of_one_batch_are_steered_each_by_its_own_vector(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("one", Profile((random_steering(backbone, 0),)))
    engine.load("two", Profile((fitted_lora(backbone, 1), random_steering(backbone, 1, seed=2))))
    engine.load("both", Profile((random_steering(backbone, 0), random_steering(backbone, 1, seed=2))))
    asked = [
        GenerationRequest(backbone.chat_ids(text), profile, max_new_tokens=6)
        for text in (QUESTION, "Cholera")
        for profile in (None, "one", "two", "both")
    ]
    together, alone = engine.complete(asked), [engine.complete([request])[0] for request in asked]
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]
    assert len({row.token_ids for row in together}) > 4
    engine.unload("one")
    assert engine.complete(asked[:1])[0].token_ids == together[0].token_ids


def test_the_backbones_rows_beside_steered_ones_are_untouched(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    plain = engine.complete([GenerationRequest(backbone.chat_ids(QUESTION), None, max_new_tokens=6)] * 2)
    engine.load("one", Profile((random_steering(backbone, 0, size=5.0),)))
    request = [GenerationRequest(backbone.chat_ids(QUESTION), name, max_new_tokens=6) for name in (None, "one")]
    beside = engine.complete(request)[0]
    # Equal prompts are read once, others in one batch: its shape decides the last bits.
    assert beside.token_ids == plain[0].token_ids and beside.logprobs == pytest.approx(plain[0].logprobs, abs=1e-5)


def test_soft_thoughts_are_thought_without_the_steering(backbone: Backbone) -> None:
    thoughts = SoftCoT(SoftCoTSpec(num_thoughts=2, assistant_layers=2))
    plain = thoughts.states(backbone, backbone.chat_ids(QUESTION)).clone()
    thoughts._states.clear()
    with random_steering(backbone, 0).attach(backbone):
        assert torch.equal(thoughts.states(backbone, backbone.chat_ids(QUESTION)), plain)


def test_adapters_off_passes_steering_over(backbone: Backbone) -> None:
    ids_BT = torch.tensor([backbone.chat_ids(QUESTION)])
    with torch.no_grad():
        plain = backbone.model(ids_BT, use_cache=False).logits
        with random_steering(backbone, 0).attach(backbone):
            with adapters_off(backbone.model):
                assert torch.equal(backbone.model(ids_BT, use_cache=False).logits, plain)
            assert not torch.equal(backbone.model(ids_BT, use_cache=False).logits, plain)


def test_an_engine_made_while_a_vector_is_attached_holds_the_bare_backbone(backbone: Backbone) -> None:
    asked = [GenerationRequest(backbone.chat_ids(QUESTION), None, max_new_tokens=6)]
    plain = TorchEngine(backbone).complete(asked)
    with random_steering(backbone, 0, size=5.0).attach(backbone):
        assert TorchEngine(backbone).complete(asked) == plain


def test_a_vector_of_another_backbone_is_refused(backbone: Backbone) -> None:
    foreign = Steering(SteeringSpec(layer=0), 1.0, torch.ones(backbone.hidden_size), 0, "f" * 64)
    engine = TorchEngine(backbone)
    with pytest.raises(BackboneMismatch, match="made on backbone ffffffffffff"):
        engine.load("foreign", Profile((foreign,)))
    with pytest.raises(RefusedAdapter, match="has 32 numbers, but got shape"):
        Steering.of(SteeringSpec(layer=0), backbone, torch.ones(3))
    assert engine.loaded == ()


def test_a_difference_of_means_needs_continuations(backbone: Backbone) -> None:
    empty = Contrast(backbone.chat_ids(QUESTION), (), tuple(backbone.encode("other")))
    for asked in ([], [empty]):
        with pytest.raises(RefusedAdapter, match="two continuations of one token or more"):
            Steering.difference_of_means(SteeringSpec(layer=0), backbone, asked)


def test_a_release_may_hold_a_lora_and_a_steering_vector(backbone: Backbone, tmp_path: Path) -> None:
    lora, shift = fitted_lora(backbone, 1), random_steering(backbone, 1)
    write_release(tmp_path / "release", backbone, lora, shift)
    assert "steering/adapter_model.safetensors" in verify(tmp_path / "release").files
    loaded = Profile.load(tmp_path / "release")
    assert [type(adapter).__name__ for adapter in loaded.adapters] == ["LoRA", "Steering"]
    assert torch.equal(loaded.adapters[1].contribution().residual[1], shift.contribution().residual[1])
