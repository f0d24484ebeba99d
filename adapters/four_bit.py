"""Frozen linear layers in 4 bits (NF4, by bitsandbytes): a quarter of the memory of bfloat16, for a backbone that is another one
in every number that it computes. What is fitted around it stays in float32.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import UnknownBackbone

PACKAGE = "bitsandbytes"
BLOCKS = (
    64,
    32,
)  # weights that share a scale, the larger first: they must divide a row, or bitsandbytes reads it wrongly on a CPU
MOST_ROUNDED = 0.2  # of a layer's norm; NF4 takes about 0.09 of normally distributed weights


def hold_in_four_bits(decoder: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Puts a 4-bit layer on the device in the place of every linear layer of the decoder, one after the other.

    UnknownBackbone where bitsandbytes is not installed, or makes of a layer something else than its weights, rounded.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UnknownBackbone(
            f"A backbone in 4 bits needs the package {PACKAGE}, which is not installed. Install it with "
            "`pip install 'graftline[bnb]'`, or take the format full."
        )
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, linear in [(path, module) for path, module in decoder.named_modules() if isinstance(module, nn.Linear)]:
        bias = linear.bias is not None
        held = Linear4bit(linear.in_features, linear.out_features, bias, dtype, False, "nf4", device="meta")
        whole, size = linear.weight.data, next((size for size in BLOCKS if linear.in_features % size == 0), BLOCKS[0])
        held.weight = Params4bit(whole, requires_grad=False, quant_type="nf4", compress_statistics=False, blocksize=size)
        if bias:
            held.bias = linear.bias
        # On some CPUs it would write the weights anew, in another order and for products in bfloat16, when it is first asked.
        held.support_avx512bf16_for_cpu = False
        parent, _, name = path.rpartition(".")
        setattr(decoder.get_submodule(parent), name, held.to(device))
        rounded = float((whole_weight(held).cpu() - whole.float().cpu()).norm() / whole.float().norm())
        if not rounded < MOST_ROUNDED:
            raise UnknownBackbone(
                f"A layer in 4 bits is its weights within {MOST_ROUNDED:.0%}, but {path} ({linear.in_features} to "
                f"{linear.out_features}) came out of {PACKAGE} changed by {rounded:.0%}. Take the format full for this backbone."
            )


def whole_weight(linear: nn.Linear) -> Tensor:
    """The weight as it acts, in float32, whatever it is held in."""
    weight: Any = linear.weight
    if weight.is_floating_point():
        return linear.weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return whole.float()
