"""The LoRA layer of one autograd node: its output and its gradients are those of the plain products."""

from __future__ import annotations

from typing import Any

import torch

from adapters.lora_linear import _FrozenLowRank


def test_one_node_has_the_output_and_the_gradients_of_the_plain_products() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 6), (5, 6), (5,), (4, 6), (5, 4)))
    learnt = [tensor.requires_grad_() for tensor in (x, a, b)]
    apply: Any = _FrozenLowRank.apply  # untyped in torch
    found = apply(x, weight, bias, a, b)
    expected = x @ weight.T + bias + x @ a.T @ b.T
    torch.testing.assert_close(found, expected)
    towards = torch.randn(expected.shape, generator=generator)
    torch.testing.assert_close(torch.autograd.grad(found, learnt, towards), torch.autograd.grad(expected, learnt, towards))
