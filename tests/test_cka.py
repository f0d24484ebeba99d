"""CKA: what it must not be fooled by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fitted import fitted_lora
from torch import Tensor
from toy_engine import ToyEngine

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.cka import DIRECT_AGAIN, cka_curves, draw, unbiased_cka
from evaluation.task import DIRECT
from evaluation.tasks import TASKS


def states(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def biased_cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """The formula of Kornblith et al. as it stands."""
    x_ND, y_ND = (states_ND - states_ND.mean(dim=0) for states_ND in (x_ND, y_ND))
    return float((y_ND.T @ x_ND).norm() ** 2 / ((x_ND.T @ x_ND).norm() * (y_ND.T @ y_ND).norm()))


def test_few_items_for_the_width_are_no_likeness_by_the_unbiased_estimator() -> None:
    one, two = states(100, 576, 0), states(100, 576, 1)
    assert abs(unbiased_cka(one, two)) < 0.05 and biased_cka(one, two) > 0.8
    with pytest.raises(ValueError, match="at least 4 items"):
        unbiased_cka(one[:3], two[:3])


def test_states_equal_up_to_rotation_scale_and_offset_are_alike() -> None:
    one = states(200, 8, 0)
    rotation = torch.linalg.qr(states(8, 8, 1)).Q
    assert unbiased_cka(one, 3 * one @ rotation + 100) == pytest.approx(1.0)


def test_both_estimators_agree_where_items_are_many() -> None:
    one = states(4000, 8, 0)
    two = one + 0.7 * states(4000, 8, 1)
    assert biased_cka(one, two) == pytest.approx(unbiased_cka(one, two), abs=0.01)
    assert 0.3 < unbiased_cka(one, two) < 0.9


def test_an_offset_that_all_items_share_is_centred_away() -> None:
    one, two = states(2000, 8, 0) + 50, states(2000, 8, 1) + 50
    assert abs(unbiased_cka(one, two)) < 0.05


def test_the_control_asks_for_the_same_in_other_words() -> None:
    assert DIRECT_AGAIN != DIRECT and "Answer:" in DIRECT_AGAIN


def test_backbone_and_adapter_have_a_curve_and_a_control_each(backbone: Backbone, tmp_path: Path) -> None:
    engine = TorchEngine(backbone)
    engine.load("one", Profile((fitted_lora(backbone, 1),)))
    found = cka_curves(engine, backbone, "one", TASKS["boxes"].examples("select", 8))
    assert [curve.name.partition(":")[0] for curve in found.curves] == ["backbone", "backbone", "adapter", "adapter"]
    assert {len(curve.values) for curve in found.curves} == {len(backbone.layers)}
    assert found.curves[0].values != found.curves[2].values
    draw(found, tmp_path / "cka.png")
    assert (tmp_path / "cka.png").stat().st_size > 1000


def test_an_engine_that_shows_no_states_says_so(backbone: Backbone) -> None:
    found = cka_curves(ToyEngine(backbone, ()), backbone, "one", TASKS["boxes"].examples("select", 4))
    assert not found.curves and "lacks the `inspect` capability" in found.not_measurable
