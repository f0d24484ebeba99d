"""Adapters as they are after a fit: no weight is at its start."""

from __future__ import annotations

from typing import TypeVar

import torch

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from adapters.steering import Steering, SteeringSpec

A = TypeVar("A", bound=Adapter)


def fitted(adapter: A, backbone: Backbone, seed: int) -> A:
    generator = torch.Generator().manual_seed(seed)
    with adapter.attach(backbone), torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return adapter


def fitted_lora(backbone: Backbone, seed: int, rank: int = 4) -> LoRA:
    return fitted(LoRA(LoRASpec(rank=rank, alpha=rank * 2, seed=seed)), backbone, seed)


def fitted_softcot(backbone: Backbone, seed: int) -> SoftCoT:
    return fitted(SoftCoT(SoftCoTSpec(num_thoughts=3, assistant_layers=1, gate=0.5, seed=seed)), backbone, seed)


def random_steering(backbone: Backbone, layer: int = 0, size: float = 1.0, seed: int = 0) -> Steering:
    vector_H = size * torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(seed))
    return Steering.of(SteeringSpec(layer=layer), backbone, vector_H)
