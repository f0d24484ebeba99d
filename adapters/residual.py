"""A vector added to the residual stream, as a hook of one decoder layer."""

from __future__ import annotations

from torch import Tensor, nn

from adapters.hold import Hold

# Legend: T tokens, H hidden


class ResidualShift:
    """Adds `factor` times the vector to the layer's output at every token; gradients flow into the vector.

    With a hold, as much of that as the feature that it reads is short of its level.

    A decoder layer returns a bare tensor or, in other versions of transformers, a tuple that begins with it. Taking `output[0]`
    of a bare tensor would shift the first row of the batch alone.
    """

    def __init__(self, vector_H: Tensor, factor: float, hold: Hold | None = None) -> None:
        self.vector_H, self.factor, self.hold = vector_H, factor, hold
        self.is_off = False

    def __call__(
        self, layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if self.is_off:
            return None
        states_BTH = output if isinstance(output, Tensor) else output[0]
        added = self.factor * self.vector_H
        if self.hold is not None:
            added = added * self.hold.missing(states_BTH)
        shifted_BTH = states_BTH + added.to(states_BTH)
        return shifted_BTH if isinstance(output, Tensor) else (shifted_BTH, *output[1:])
