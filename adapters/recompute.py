"""Gradient checkpointing: a layer's activations are computed again in the backward instead of being held until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from adapters.backbone import Backbone


@contextmanager
def recomputed(backbone: Backbone) -> Iterator[None]:
    """Inside, the decoder layers keep their inputs alone for the backward: the same numbers, in more time and less memory.

    Hooks of a layer run outside of what is computed again: steering vectors and the shards of a backbone act once.
    """
    layers = list(backbone.layers)
    for layer in layers:
        layer.forward = Recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


@dataclass(frozen=True)
class Recomputed:
    """No closure: a copy of the model, such as the engine makes, has one over its own layer."""

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
