"""Frozen weights in a lower precision: cast once, and shared by all that compute with them at the same time."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowWeight:
    """Held by whoever computes with it; gone, with its memory, when nobody does."""

    tensor: Tensor
    _source: weakref.ref[Tensor]
    _version: int

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> LowWeight:
        """The weight in that dtype, without gradient. A weight that was written to since is cast anew."""
        key = (id(weight), dtype)
        found = _HELD.get(key)
        if found is None or found._source() is not weight or found._version != weight._version:
            with torch.inference_mode(False), torch.no_grad():  # a fit saves it for its backward
                found = cls(weight.detach().to(dtype), weakref.ref(weight), weight._version)
            _HELD[key] = found
        return found


_HELD: weakref.WeakValueDictionary[tuple[int, torch.dtype], LowWeight] = weakref.WeakValueDictionary()
