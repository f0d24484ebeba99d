"""A steering vector that is trained: it makes short chains likelier than long ones and stays near the backbone.

CES, the trained form of activation-steered compression (Azizi et al., arXiv 2507.04742, version of 2026): with E the mean
negative log-probability a token under the steered model, one vector descends

    softplus(E(short) - E(long)) + weight * max(0, KL(backbone || steered) - eps)

where the KL is the mean over the tokens of the long chain. The paper's own rates and weights were not at hand; these are ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softplus

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import adapters_off
from adapters.spec import Range, Spec
from adapters.steering import Contrast, Steering, SteeringSpec

# Legend: T tokens, V vocabulary, H hidden


class CESSpec(Spec):
    """`rate` is Adam's, in root-mean-square entries of the hidden states: the same at every layer and backbone."""

    steps: Annotated[int, Range(10, 100, log=True)] = 25
    rate: Annotated[float, Range(0.01, 0.2, log=True)] = 0.04
    eps: Annotated[float, Range(3e-3, 0.1, log=True)] = 0.05
    weight: Annotated[float, Range(5.0, 50.0, log=True)] = 20.0
    batch_size: int = 4
    seed: int = 0

    @model_validator(mode="after")
    def _usable(self) -> CESSpec:
        if min(self.steps, self.batch_size) < 1 or min(self.rate, self.eps) <= 0 or self.weight < 0:
            raise ValueError(f"A fit needs steps and batch_size from 1, rate and eps above 0 and weight from 0, but got {self}.")
        return self


OnStep = Callable[[int, float, float], None]  # the step from 1, E(short) - E(long), and the KL, in nats per token


def contrastive(
    spec: SteeringSpec, ces: CESSpec, backbone: Backbone, contrasts: Sequence[Contrast], on_step: OnStep | None = None
) -> Steering:
    """Trained from 0 at the spec's layer; `wanted_ids` are the short chains. The backbone is left as it was."""
    if not contrasts or not all(contrast.wanted_ids and contrast.other_ids for contrast in contrasts):
        raise RefusedAdapter(
            f"A vector is trained on one or more prompts with two continuations of one token or more, but got {len(contrasts)}, "
            "or an empty continuation among them. Leave out the prompts that have none."
        )
    made = Steering(spec.model_copy(update={"gamma": 1.0, "method": "ces"}))
    rng, queue = random.Random(ces.seed), list[Contrast]()
    with made.attach(backbone):
        (vector_H,) = made.parameters()
        rate = ces.rate * _entry_size(backbone, made, contrasts)
        adam = torch.optim.Adam([vector_H], lr=rate)
        for step in range(1, ces.steps + 1):
            if len(queue) < ces.batch_size:
                queue += rng.sample(list(contrasts), len(contrasts))
            batch, queue = queue[: ces.batch_size], queue[ces.batch_size :]
            adam.zero_grad()
            margin, kl = 0.0, 0.0
            for contrast in batch:
                short_TV, long_TV = _logits(backbone, contrast, "wanted"), _logits(backbone, contrast, "other")
                with torch.no_grad(), adapters_off(backbone.model):
                    base_TV = _logits(backbone, contrast, "other")
                apart = _nll(short_TV, contrast.wanted_ids) - _nll(long_TV, contrast.other_ids)
                moved = kl_div(log_softmax(long_TV, -1), log_softmax(base_TV, -1), log_target=True, reduction="sum")
                moved = moved / len(contrast.other_ids)
                ((softplus(apart) + ces.weight * torch.relu(moved - ces.eps)) / len(batch)).backward()
                margin, kl = margin + float(apart.detach()) / len(batch), kl + float(moved.detach()) / len(batch)
            if not torch.isfinite(vector_H.grad if vector_H.grad is not None else vector_H).all():
                raise RefusedAdapter(f"The fit of the vector diverged in step {step}. Lower the rate, now {ces.rate:g}.")
            adam.step()
            if on_step is not None:
                on_step(step, margin, kl)
    return made


def _logits(backbone: Backbone, contrast: Contrast, side: str) -> Tensor:
    """At the places that the continuation's tokens are read from, [T, V] in float32."""
    ids = contrast.wanted_ids if side == "wanted" else contrast.other_ids
    whole = torch.tensor([[*contrast.prompt_ids, *ids]], device=backbone.device)
    states_TH = backbone.decoder(input_ids=whole, use_cache=False).last_hidden_state[0, len(contrast.prompt_ids) - 1 : -1]
    logits_TV: Tensor = backbone.model.get_output_embeddings()(states_TH)
    return logits_TV.float()


def _nll(logits_TV: Tensor, ids: tuple[int, ...]) -> Tensor:
    return cross_entropy(logits_TV, torch.tensor(ids, device=logits_TV.device))


@torch.no_grad()
def _entry_size(backbone: Backbone, steering: Steering, contrasts: Sequence[Contrast]) -> float:
    """Of the states after that layer: the median over tokens of the root mean square of a state's entries."""
    kept: list[Tensor] = []
    assert steering.layer is not None
    hook = backbone.layers[steering.layer].register_forward_hook(
        lambda module, inputs, output: kept.append((output if isinstance(output, Tensor) else output[0])[0].float())
    )
    try:
        for contrast in contrasts[:4]:
            _logits(backbone, contrast, "other")
    finally:
        hook.remove()
    return float(torch.cat(kept).pow(2).mean(dim=-1).sqrt().median())
