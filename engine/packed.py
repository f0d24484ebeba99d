"""What a contribution must be before the bank takes it, and how it lies on the shelf: checked, in ranks by pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.adapter import Contribution, Held, LowRank
from adapters.errors import DamagedAdapter, RefusedAdapter
from engine.pages import PAGE, pages_for

# Legend: K pages, R ranks of a page, I in, O out, H hidden


@dataclass(frozen=True)
class PackedUpdate:
    """One module's update; ranks beyond the update's own are zeros."""

    a_KRI: Tensor
    b_KRO: Tensor
    bias_O: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.a_KRI, self.b_KRO, self.bias_O) if part is not None)


@dataclass(frozen=True)
class Packed:
    """A copy: live weights of a fit do not change under a running batch. Vectors stay in float32."""

    updates: Mapping[str, PackedUpdate] = field(default_factory=dict)  # by module path
    residual: Mapping[int, Tensor] = field(default_factory=dict)  # [H], by layer
    held: Mapping[int, Held] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing acts in any layer."""
        return not (self.updates or self.residual or self.held)

    @property
    def num_pages(self) -> int:
        return max((len(update.a_KRI) for update in self.updates.values()), default=0)

    @property
    def num_bytes(self) -> int:
        vectors = [*self.residual.values(), *(part for one in self.held.values() for part in (one.vector_H, one.hold.encoder_H))]
        return sum(update.num_bytes for update in self.updates.values()) + sum(vector_H.nbytes for vector_H in vectors)


@dataclass(frozen=True)
class Fits:
    """What an adapter must fit: the linear layers by path, the decoder layers from below, and what the bank computes in."""

    linears: Mapping[str, nn.Linear]
    dtype: torch.dtype
    num_layers: int
    hidden_size: int

    def pack(self, name: str, contribution: Contribution) -> Packed:
        """RefusedAdapter where a part does not fit, DamagedAdapter where a number is not finite; changes nothing."""
        with torch.no_grad():
            return Packed(
                {path: self._update(name, path, update) for path, update in contribution.low_rank.items()},
                {layer: self._vector(name, layer, vector_H) for layer, vector_H in contribution.residual.items()},
                {layer: self._held(name, layer, one) for layer, one in contribution.held.items()},
            )

    def _update(self, name: str, path: str, update: LowRank) -> PackedUpdate:
        target = self.linears.get(path)
        if target is None:
            raise RefusedAdapter(
                f"An adapter updates linear layers of this backbone, but {name!r} has weights for {path!r}, which is none of "
                f"its {len(self.linears)}. Load the backbone that it was fitted on."
            )
        if update.a_RI.dim() != 2 or update.b_OR.dim() != 2 or len(update.a_RI) != update.b_OR.shape[1]:
            raise DamagedAdapter(
                f"An update is A of [rank, in] and B of [out, rank], but {name!r} has {tuple(update.a_RI.shape)} and "
                f"{tuple(update.b_OR.shape)} at {path}. Save the adapter again."
            )
        if (update.a_RI.shape[1], update.b_OR.shape[0]) != (target.in_features, target.out_features):
            raise RefusedAdapter(
                f"{path} maps {target.in_features} to {target.out_features}, but the update of {name!r} maps "
                f"{update.a_RI.shape[1]} to {update.b_OR.shape[0]}. Load the backbone that it was fitted on."
            )
        if update.bias_O is not None and update.bias_O.shape != (target.out_features,):
            raise RefusedAdapter(
                f"{path} puts out {target.out_features} numbers, but the bias of {name!r} has {tuple(update.bias_O.shape)}. Load "
                "the backbone that it was fitted on."
            )
        # Of the numbers that are computed with: what float32 holds may be infinite in a narrower type.
        a_RI, b_OR, bias_O = (None if part is None else part.detach().to("cpu", self.dtype) for part in _parts(update))
        assert a_RI is not None and b_OR is not None
        if not all(bool(torch.isfinite(part).all()) for part in (a_RI, b_OR, bias_O) if part is not None):
            raise DamagedAdapter(
                f"Weights must be finite, but those of {name!r} at {path} hold NaN or infinity. The fit that made them "
                "diverged: fit again with a lower learning rate."
            )
        return PackedUpdate(_paged(a_RI), _paged(b_OR.T), None if bias_O is None else bias_O.clone())

    def _held(self, name: str, layer: int, held: Held) -> Held:
        vector_H, encoder_H = (self._vector(name, layer, part) for part in (held.vector_H, held.hold.encoder_H))
        return Held(vector_H, replace(held.hold, encoder_H=encoder_H))

    def _vector(self, name: str, layer: int, vector_H: Tensor) -> Tensor:
        if not 0 <= layer < self.num_layers or vector_H.shape != (self.hidden_size,):
            raise RefusedAdapter(
                f"A residual vector stands after one of {self.num_layers} layers of {self.hidden_size} numbers, but {name!r} "
                f"has shape {tuple(vector_H.shape)} after layer {layer}. Load the backbone that it was made on."
            )
        if not torch.isfinite(vector_H).all():
            raise DamagedAdapter(
                f"Vectors must be finite, but that of {name!r} after layer {layer} holds NaN or infinity. Make it again."
            )
        # In full precision: the residual stream is wider than what the linear layers compute in.
        return vector_H.detach().to("cpu", torch.float32, copy=True)


def _parts(update: LowRank) -> tuple[Tensor, Tensor, Tensor | None]:
    return update.a_RI, update.b_OR, update.bias_O


def _paged(ranks_RX: Tensor) -> Tensor:
    """A copy in whole pages, [K, PAGE, X]."""
    rank, width = ranks_RX.shape
    count = pages_for(rank)
    return pad(ranks_RX, (0, 0, 0, count * PAGE - rank)).reshape(count, PAGE, width).clone(memory_format=torch.contiguous_format)
