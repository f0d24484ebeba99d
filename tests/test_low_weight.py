"""Weights that are cast once for all that compute with them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from adapters.backbone import Backbone, fast_bfloat16
from adapters.lora import LoRA, LoRASpec
from adapters.low_weight import LowWeight
from engine.twin import Twin

WEIGHT = nn.Parameter(torch.randn(3, 3), requires_grad=False)


def test_all_who_ask_hold_the_same_tensor() -> None:
    first = LowWeight.of(WEIGHT, torch.bfloat16)
    assert LowWeight.of(WEIGHT, torch.bfloat16) is first and first.tensor.dtype == torch.bfloat16
    assert LowWeight.of(WEIGHT, torch.float16) is not first


def test_it_goes_when_nobody_holds_it() -> None:
    held = LowWeight.of(WEIGHT, torch.bfloat16)
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None


def test_a_weight_that_was_written_to_is_cast_anew() -> None:
    weight = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    before = LowWeight.of(weight, torch.bfloat16)
    weight.add_(1)
    assert before.tensor.sum() == 0 and LowWeight.of(weight, torch.bfloat16).tensor.sum() == 4


def test_one_that_inference_asked_for_first_can_be_fitted_through() -> None:
    weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    with torch.inference_mode():
        held = LowWeight.of(weight, torch.bfloat16)
    x = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    (x @ held.tensor).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[2.0, 2.0]]


def test_a_fit_and_the_engine_that_writes_for_it_hold_one_cast(backbone: Backbone) -> None:
    if not fast_bfloat16(backbone.device):
        pytest.skip("this machine computes bfloat16 slowly: nothing is cast")
    twin, lora = Twin(backbone, "bfloat16"), LoRA(LoRASpec(rank=2))
    with lora.attach(backbone):
        with backbone.autocast():
            backbone.model(input_ids=torch.tensor([[1, 2]]))
        fitted = [module._low[0].tensor for module in backbone.model.modules() if getattr(module, "_low", None)]
    written = {module.weight.data_ptr() for module in twin.linears().values()}
    assert fitted and {tensor.data_ptr() for tensor in fitted} <= written
