"""Residual vectors and held features, stacked for the rows of one forward: the same operations for any number of profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.adapter import Held
from adapters.hold import missing
from engine.packed import Packed

# Legend: B rows, T tokens, H hidden


@dataclass(frozen=True)
class RowVectors:
    """What one layer's output gets, row by row; rows without anything get zeros."""

    shift_B1H: Tensor | None  # None: no row has one
    held: _HeldRows | None

    @classmethod
    def of(cls, layer: int, rows: Sequence[Packed | None], device: torch.device) -> RowVectors | None:
        """None where no row of the forward has anything after this layer."""
        shifts = [None if row is None else row.residual.get(layer) for row in rows]
        holds = [None if row is None else row.held.get(layer) for row in rows]
        if not any(part is not None for part in (*shifts, *holds)):
            return None
        return cls(_stacked(shifts, device), _HeldRows.of(holds, device))

    def add(self, states_BTH: Tensor) -> None:
        """In place; a feature is held in the state that the residual vector is already in."""
        if self.shift_B1H is not None:
            states_BTH += self.shift_B1H.to(states_BTH)
        if self.held is not None:
            states_BTH += self.held.added(states_BTH).to(states_BTH)


@dataclass(frozen=True)
class _HeldRows:
    vector_B1H: Tensor
    encoder_B1H: Tensor
    bias_B11: Tensor
    threshold_B11: Tensor
    level_B11: Tensor

    @classmethod
    def of(cls, rows: Sequence[Held | None], device: torch.device) -> _HeldRows | None:
        vector_B1H = _stacked([None if row is None else row.vector_H for row in rows], device)
        encoder_B1H = _stacked([None if row is None else row.hold.encoder_H for row in rows], device)
        if vector_B1H is None or encoder_B1H is None:
            return None
        holds = [None if row is None else row.hold for row in rows]
        numbers = [[0.0] * 3 if hold is None else [hold.bias, hold.threshold, hold.level] for hold in holds]
        return cls(vector_B1H, encoder_B1H, *torch.tensor(numbers, device=device)[:, :, None, None].unbind(dim=1))

    def added(self, states_BTH: Tensor) -> Tensor:
        return self.vector_B1H * missing(states_BTH, self.encoder_B1H, self.bias_B11, self.threshold_B11, self.level_B11)


def _stacked(vectors: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """[B, 1, H]; zeros for None, and None where all are."""
    known = next((vector_H for vector_H in vectors if vector_H is not None), None)
    if known is None:
        return None
    zeros_H = torch.zeros_like(known)
    return torch.stack([zeros_H if vector_H is None else vector_H for vector_H in vectors])[:, None].to(device)


def layers_of(packed: Mapping[str, Packed]) -> list[int]:
    """After which layers any of them adds something."""
    return sorted({layer for one in packed.values() for layer in (*one.residual, *one.held)})
