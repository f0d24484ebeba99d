"""A LoRA and a steering vector as one LoRA, for what takes one adapter a request: PEFT's `adapter_names`, or a file to hand on.

The vector becomes the bias of one layer, all other biases are 0. PEFT's own `add_weighted_adapter` drops biases without a word.
"""

from __future__ import annotations

import torch

from adapters.errors import RefusedAdapter
from adapters.lora import BIAS, PREFIX, LoRA
from adapters.steering import Steering


def combined(lora: LoRA, steering: Steering) -> LoRA:
    """Computes what both do together; scaling it scales both."""
    place, scaling = steering.place(), lora.spec.alpha * lora.scale / lora.spec.rank
    if steering.hold is not None:
        raise RefusedAdapter(
            "A LoRA adds the same bias at every token, but this vector holds a feature, which adds what is missing. Serve both "
            "as one profile, or steer by the feature's column."
        )
    if place is None:
        raise RefusedAdapter(
            "A vector becomes part of a LoRA where its block ends in states + mlp(states), but this one's does not. Serve both "
            "as one profile, whose vector acts by a hook."
        )
    if scaling == 0:
        raise RefusedAdapter("A vector cannot stand inside a LoRA of scale 0, which would take it away. Scale the LoRA up first.")
    tensors, rank, vector_H = dict(lora.tensors()), lora.spec.rank, steering.tensors()["vector"]
    own = f"{PREFIX}{place.path}"
    tensors.setdefault(f"{own}.lora_A.weight", torch.zeros(rank, place.num_in))
    tensors.setdefault(f"{own}.lora_B.weight", torch.zeros(len(vector_H), rank))
    for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
        tensors.setdefault(key.removesuffix(".lora_B.weight") + BIAS, torch.zeros(len(tensors[key])))
    tensors[own + BIAS] = tensors[own + BIAS] + (steering.factor / scaling * vector_H).to(tensors[own + BIAS])
    return LoRA(lora.spec, lora.scale, tensors)
