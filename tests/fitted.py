"""Adapters as they are after a fit: no weight is at its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

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


class OverflowsFor(SoftCoT):
    """Its thoughts are infinite for one prompt, and numbers for all others."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        super().__init__(SoftCoTSpec(num_thoughts=3, assistant_layers=1, gate=0.5, seed=1))
        self._ids = ids

    def thoughts(self, backbone: Backbone, ids: tuple[int, ...], chains: Sequence[int] | None = None) -> Tensor:
        found = super().thoughts(backbone, ids, chains)
        return found * torch.inf if ids == self._ids else found


def random_steering(backbone: Backbone, layer: int = 0, size: float = 1.0, seed: int = 0) -> Steering:
    vector_H = size * torch.randn(backbone.hidden_size, generator=torch.Generator().manual_seed(seed))
    return Steering.of(SteeringSpec(layer=layer), backbone, vector_H)
