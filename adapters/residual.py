"""A vector added to the residual stream, as a hook of one decoder layer."""

from __future__ import annotations

from torch import Tensor, nn

# Legend: T tokens, H hidden


class ResidualShift:
    """Adds `factor` times the vector to the layer's output at every token; gradients flow into the vector.

    A decoder layer returns a bare tensor or, in other versions of transformers, a tuple that begins with it. Taking `output[0]`
    of a bare tensor would shift the first row of the batch alone.
    """

    def __init__(self, vector_H: Tensor, factor: float) -> None:
        self.vector_H, self.factor = vector_H, factor
        self.is_off = False

    def __call__(
        self, layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if self.is_off:
            return None
        states_BTH = output if isinstance(output, Tensor) else output[0]
        shifted_BTH = states_BTH + (self.factor * self.vector_H).to(states_BTH)
        return shifted_BTH if isinstance(output, Tensor) else (shifted_BTH, *output[1:])
