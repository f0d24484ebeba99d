"""Holding a feature: what one feature of a sparse autoencoder reads at a place is brought to a level, and all else is left.

As SAE-Reasoning steers (Galichin et al. 2025, arXiv 2503.18878): the feature's activation is set and the rest of the state kept,
the reconstruction's error with it. That is states + (level - z) * column, so the encoder's row for the feature is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Legend: B rows, T tokens, H hidden


@dataclass(frozen=True)
class Hold:
    """`z` is the feature's activation, 0 at or below the threshold: a feature that others outdo is not active."""

    encoder_H: Tensor
    bias: float
    threshold: float
    level: float

    def missing(self, states_BTH: Tensor) -> Tensor:
        """How much of the column brings each place to the level, [B, T, 1] in float32."""
        return missing(states_BTH, self.encoder_H, self.bias, self.threshold, self.level)

    def to(self, device: torch.device) -> Hold:
        """A copy there, in float32."""
        return Hold(self.encoder_H.detach().to(device, torch.float32, copy=True), self.bias, self.threshold, self.level)


def missing(
    states_BTH: Tensor, encoder_H: Tensor, bias: float | Tensor, threshold: float | Tensor, level: float | Tensor
) -> Tensor:
    """As `Hold.missing`, for numbers that may differ by row: what fits [B, T, 1], and the encoder [B, T, H]."""
    # No matrix product: autocast would take it in bfloat16.
    read_BT1 = (states_BTH.float() * encoder_H).sum(dim=-1, keepdim=True) + bias
    is_active = (read_BT1 > threshold) & (read_BT1 > 0)
    return level - torch.where(is_active, read_BT1, torch.zeros_like(read_BT1))
