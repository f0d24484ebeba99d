"""A LoRA layer that trains faster: one autograd node a layer, and the frozen weight cast to bfloat16 once.

PEFT's layer casts the input for every product, scales a full-width tensor, and lets autocast cast the frozen weight anew
in every forward. Here y = W x + (alpha/r) B A x is one node that keeps x and A x alone. Same parameters, same files.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from adapters.low_weight import LowWeight


class _FrozenLowRank(torch.autograd.Function):
    """Gradients for x, A and B; the frozen weight gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, scaled_b: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a_low, b_low = a.to(weight.dtype), scaled_b.to(weight.dtype)
        inner = flat @ a_low.T
        y = nn.functional.linear(flat, weight, bias)
        y.addmm_(inner, b_low.T)
        ctx.save_for_backward(flat, weight, a_low, b_low, inner)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a_low, b_low, inner = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(weight.dtype)
        grad_inner = grad @ b_low
        grad_x = grad @ weight
        grad_x.addmm_(grad_inner, a_low)
        return grad_x.view(ctx.shape).to(ctx.dtype), None, None, (grad_inner.T @ flat).float(), (grad.T @ inner).float()


class FastLoraLinear(PeftLinear):  # type: ignore[misc]  # PEFT publishes no types
    """PEFT's LoRA linear layer; under autocast, with one plain adapter and no dropout, it takes the fused path."""

    _low: tuple[LowWeight, LowWeight | None] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        plain = (
            torch.is_autocast_enabled(x.device.type)
            and name in self.lora_A
            and self.get_base_layer().weight.is_floating_point()  # not in 4 bits
            and not (self.disable_adapters or self.merged or args or kwargs or name in self.lora_variant)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and self.lora_B[name].bias is None
        )
        if not plain:
            slow: Tensor = super().forward(x, *args, **kwargs)
            return slow
        if self._low is None:
            layer, dtype = self.get_base_layer(), torch.get_autocast_dtype(x.device.type)
            self._low = LowWeight.of(layer.weight, dtype), None if layer.bias is None else LowWeight.of(layer.bias, dtype)
        weight, bias = self._low
        scaled_b = self.lora_B[name].weight * self.scaling[name]
        apply: Any = _FrozenLowRank.apply  # untyped in torch
        fast: Tensor = apply(x, weight.tensor, None if bias is None else bias.tensor, self.lora_A[name].weight, scaled_b)
        return fast


def with_fast_layers(config: LoraConfig) -> LoraConfig:
    """The same config, whose linear layers are built as `FastLoraLinear`. What PEFT saves stays plain PEFT."""
    config._register_custom_module({nn.Linear: FastLoraLinear})
    return config
