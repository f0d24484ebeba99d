"""Merging: the sum is the sum, with every scaling; what intrudes is taken away, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from fitted import fitted, fitted_lora, random_steering
from torch import Tensor

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.combined import combined
from adapters.errors import RefusedAdapter
from adapters.lora import LoRA, LoRASpec
from adapters.merge import IntruderSpec, MergeSpec, merged, without_intruders


def updates(loras: Sequence[LoRA]) -> dict[str, Tensor]:
    """The whole update of each module, [O, I], as an engine computes it."""
    return {path: low.b_OR @ low.a_RI for path, low in Stack(loras).contribution().low_rank.items()}


def assert_alike(one: dict[str, Tensor], two: dict[str, Tensor], atol: float) -> None:
    assert one.keys() == two.keys()
    for path in one:
        torch.testing.assert_close(one[path], two[path], atol=atol, rtol=0.0)


@pytest.fixture
def pair(backbone: Backbone) -> list[LoRA]:
    """Another rank, alpha, scale and other modules each."""
    mlp = fitted(LoRA(LoRASpec(rank=6, alpha=4, target_modules="mlp", seed=2)), backbone, 2)
    return [fitted_lora(backbone, 1).scaled(0.75), mlp.scaled(1.5)]


def test_a_cat_merge_is_the_sum_of_the_effects(backbone: Backbone, pair: list[LoRA]) -> None:
    digest = backbone.weights_digest()
    one = merged(backbone, pair, MergeSpec())
    assert one.spec.rank == 10 and one.scale == 1.0
    assert_alike(updates([one]), updates(pair), atol=1e-5)
    assert max(float(update.abs().max()) for update in updates(pair).values()) > 0.1
    assert backbone.weights_digest() == digest


def test_a_rank_stabilised_adapter_brings_its_own_scaling(backbone: Backbone) -> None:
    plain, other = fitted_lora(backbone, 1), fitted_lora(backbone, 2)
    stabilised = LoRA(plain.spec, math.sqrt(plain.spec.rank), plain.tensors())  # as LoRA.load reads use_rslora
    assert_alike(updates([merged(backbone, [stabilised, other], MergeSpec())]), updates([stabilised, other]), atol=1e-5)


def test_weights_multiply_effects_and_may_be_negative(backbone: Backbone, pair: list[LoRA]) -> None:
    one = merged(backbone, pair, MergeSpec(weights=(2.0, -0.5)))
    assert_alike(updates([one]), updates([pair[0].scaled(2.0), pair[1].scaled(-0.5)]), atol=1e-5)


@pytest.mark.parametrize("combination", ["ties", "dare_ties"])
def test_what_is_taken_away_may_not_vote_on_signs(combination: Literal["ties", "dare_ties"]) -> None:
    for weights in ((1.0, -0.5), (1.0, 0.0)):
        with pytest.raises(
            ValueError, match=rf"{combination!r} elects a sign .* above 0, but got 1, .* by 'cat', 'svd' or 'dare'"
        ):
            MergeSpec(combination=combination, weights=weights)
    assert MergeSpec(combination=combination, weights=(1.0, 0.5)).weights == (1.0, 0.5)


def test_the_exact_sum_takes_no_rank() -> None:
    with pytest.raises(ValueError, match="got rank = 3. Take 'svd'"):
        MergeSpec(rank=3)


def test_an_svd_of_enough_rank_is_the_sum_and_of_less_is_not(backbone: Backbone, pair: list[LoRA]) -> None:
    assert_alike(updates([merged(backbone, pair, MergeSpec(combination="svd", rank=10))]), updates(pair), atol=1e-4)
    cut = merged(backbone, pair, MergeSpec(combination="svd"))
    assert cut.spec.rank == 6
    with pytest.raises(AssertionError):
        assert_alike(updates([cut]), updates(pair), atol=1e-2)


def test_ties_leaves_out_the_sign_that_is_outvoted(backbone: Backbone) -> None:
    lora = fitted_lora(backbone, 1)
    whole = MergeSpec(combination="ties", density=1.0, rank=lora.spec.rank)
    # Of one effect and its half with the other sign, the larger is elected everywhere; a plain sum would leave half of it.
    assert_alike(updates([merged(backbone, [lora, lora.scaled(-0.5)], whole)]), updates([lora]), atol=1e-4)
    assert_alike(
        updates([merged(backbone, [lora, lora.scaled(-0.5)], whole.model_copy(update={"combination": "svd"}))]),
        updates([lora.scaled(0.5)]),
        atol=1e-4,
    )


def test_dare_drops_by_its_seed_and_keeps_all_at_density_one(backbone: Backbone, pair: list[LoRA]) -> None:
    whole = MergeSpec(combination="dare", density=1.0, rank=10)
    assert_alike(updates([merged(backbone, pair, whole)]), updates(pair), atol=1e-4)

    def dropped(seed: int) -> dict[str, Tensor]:
        return updates([merged(backbone, pair, MergeSpec(combination="dare", rank=10, seed=seed))])

    assert_alike(dropped(1), dropped(1), atol=0.0)
    with pytest.raises(AssertionError):
        assert_alike(dropped(1), dropped(2), atol=1e-3)


def test_what_cannot_be_merged_is_refused(backbone: Backbone, pair: list[LoRA]) -> None:
    with pytest.raises(RefusedAdapter, match="two adapters or more, but got 1"):
        merged(backbone, pair[:1], MergeSpec())
    with pytest.raises(RefusedAdapter, match="got 3 for 2"):
        merged(backbone, pair, MergeSpec(weights=(1.0, 1.0, 1.0)))
    steered = combined(pair[0], random_steering(backbone))
    with pytest.raises(RefusedAdapter, match="one adapter has biases"):
        merged(backbone, [pair[1], steered], MergeSpec())
    with pytest.raises(RefusedAdapter, match="one adapter has biases"):
        without_intruders(backbone, steered, IntruderSpec())


def planted(backbone: Backbone, path: str, left_O: Tensor, right_I: Tensor) -> LoRA:
    """Rank 1: `left right^T` in one module, nothing elsewhere."""
    lora = LoRA(LoRASpec(rank=1, alpha=2, target_modules="attention"))
    with lora.attach(backbone):
        pass
    key = f"base_model.model.{path}.lora_A.weight"
    tensors = {name: torch.zeros_like(tensor) for name, tensor in lora.tensors().items()}
    tensors[key], tensors[key.replace("lora_A", "lora_B")] = right_I[None].clone(), left_O[:, None] / 2
    return LoRA(lora.spec, tensors=tensors)


@pytest.fixture
def value_projection(backbone: Backbone) -> tuple[str, Tensor]:
    """Of a wide matrix the left singular vectors span all there is: 16 of them, so a mixture of many is like none of them."""
    path = "model.layers.0.self_attn.v_proj"
    return path, backbone.model.get_submodule(path).weight.detach()


def test_an_intruder_is_scaled_to_the_share_that_is_kept(backbone: Backbone, value_projection: tuple[str, Tensor]) -> None:
    path, weight_OI = value_projection
    left_OO, sizes, right_OI = torch.linalg.svd(weight_OI, full_matrices=False)
    mixture_O = left_OO.sum(1) / left_OO.shape[0] ** 0.5
    lora = planted(backbone, path, 20 * float(sizes[0]) * mixture_O, right_OI.mean(0) / right_OI.mean(0).norm())
    found = without_intruders(backbone, lora, IntruderSpec(top_k=1))
    assert found.intruders == {path: 1}
    before, after = updates([lora])[path], updates([found.lora])[path]
    assert float(after.norm() / before.norm()) == pytest.approx(0.75, abs=0.05)
    whole = without_intruders(backbone, lora, IntruderSpec(top_k=1, kept=0.0)).lora
    assert float(updates([whole])[path].norm() / before.norm()) < 0.1


def test_what_strengthens_the_backbones_own_directions_is_no_intruder(
    backbone: Backbone, value_projection: tuple[str, Tensor]
) -> None:
    path, weight_OI = value_projection
    left_OO, sizes, right_OI = torch.linalg.svd(weight_OI, full_matrices=False)
    lora = planted(backbone, path, 5 * float(sizes[0]) * left_OO[:, 0], right_OI[0])
    found = without_intruders(backbone, lora, IntruderSpec(top_k=1))
    assert found.intruders == {}
    assert_alike(updates([found.lora]), updates([lora]), atol=0.0)
