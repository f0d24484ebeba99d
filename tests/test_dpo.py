"""Direct preference optimisation by TRL: what its two constants do to the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fitted import fitted_lora

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from tuning.methods.dpo import DPOSpec, Pair, run_dpo

pytest.importorskip("trl")


def first(backbone: Backbone, lora: LoRA, **values: Any) -> dict[str, float]:
    pairs = [Pair(tuple(backbone.chat_ids(f"Say {n}")), (5, 6, 7), (8, 9)) for n in range(4)]
    done = run_dpo(backbone, lora, DPOSpec(name="rlsf", steps=1, batch_size=4, **values), pairs)
    return {name: numbers[0] for name, numbers in done.numbers.items()}


def test_the_margin_is_beta_times_the_difference_to_the_backbone(backbone: Backbone) -> None:
    once, twice = (first(backbone, fitted_lora(backbone, 1), beta=beta)["margin"] for beta in (0.1, 0.2))
    assert abs(once) > 1e-3 and twice == pytest.approx(2 * once, rel=0.05)


def test_the_chosen_ones_cross_entropy_is_weighed_beside_the_preference(backbone: Backbone) -> None:
    bare, half, whole = (first(backbone, LoRA(LoRASpec(rank=4)), sft_weight=weight)["loss"] for weight in (0.0, 0.5, 1.0))
    assert bare == pytest.approx(math.log(2), abs=1e-2) and half > bare + 0.5
    assert whole - bare == pytest.approx(2 * (half - bare), rel=0.05)
