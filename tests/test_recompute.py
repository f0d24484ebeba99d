"""Gradient checkpointing: the same fit, from activations that are computed again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import LoRASpec
from adapters.recompute import recomputed
from adapters.softcot import SoftCoTSpec
from adapters.spec import Spec
from adapters.steering import SteeringSpec
from evaluation.task import Example
from tuning.methods.sft import SFT, SFTSpec

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(4)
]
SPECS: dict[str, list[Spec]] = {
    "lora": [LoRASpec(rank=4, dropout=0.1)],
    "softcot": [SoftCoTSpec(num_thoughts=2, assistant_layers=1)],
    "steering": [SteeringSpec()],
}


@pytest.mark.parametrize("kind", SPECS)
def test_a_fit_with_activations_computed_again_is_the_same_bit_for_bit(backbone: Backbone, kind: str) -> None:
    def fitted(backbone: Backbone) -> list[float]:
        adapters = [new_adapter(spec) for spec in SPECS[kind]]
        return list(
            SFT(SFTSpec(steps=3, batch_size=4, learning_rate=1e-2, kl_weight=0.5)).fit(backbone, adapters, EXAMPLES).losses
        )

    before = backbone.weights_digest()
    assert fitted(replace(backbone, recompute=True)) == fitted(backbone)
    assert backbone.weights_digest() == before and not any("forward" in vars(layer) for layer in backbone.layers)


def test_the_layers_are_computed_again_and_hold_their_inputs_alone(backbone: Backbone) -> None:
    embeds = backbone.embeddings(torch.tensor([[5, 6, 7]])).detach().requires_grad_()

    def held() -> int:
        """Numbers that the forward keeps for the backward."""
        count = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone.decoder(inputs_embeds=embeds, use_cache=False)
        return count

    plain = held()
    with recomputed(backbone):
        assert held() < plain / 4
    assert held() == plain


def test_without_gradients_nothing_is_computed_again(backbone: Backbone) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = backbone.model(ids).logits
        with recomputed(backbone):
            assert torch.equal(backbone.model(ids).logits, plain)
