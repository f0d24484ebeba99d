"""Steering by a feature beside its nulls: a planted cause steers, another direction and a random column do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_sae import random_sae

from adapters.backbone import Backbone
from adapters.sae import SAE
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.feature_steering import CLAMP, COLUMN, MEANS, OFF, Compared, compared, nulls
from evaluation.tasks.word_problem import WORD_PROBLEM

CAUSE, OTHER = 5, 6
WORD = ("answer",)
ITEMS = [(WORD_PROBLEM, WORD_PROBLEM.examples("search", 8))]


def planted(backbone: Backbone) -> SAE:
    """Of the last layer: feature CAUSE writes what the word's token is read from, and no other feature does."""
    sae = random_sae(backbone)
    (token,) = backbone.encode(" Answer")
    cause_H = backbone.embeddings.weight[token] * backbone.decoder.norm.weight  # type: ignore[operator,union-attr]
    rows_FH = sae.w_dec_FH.clone()
    rows_FH[CAUSE] = cause_H / cause_H.norm()
    away_FH = rows_FH - (rows_FH @ rows_FH[CAUSE])[:, None] * rows_FH[CAUSE]
    away_FH[CAUSE] = rows_FH[CAUSE]
    rows_FH = away_FH / away_FH.norm(dim=-1, keepdim=True)
    parts = sae.b_enc_F, rows_FH, sae.b_dec_H, sae.k, sae.record, torch.full_like(sae.max_act_F, 40.0), sae.frequency_F
    return SAE(rows_FH.T.contiguous(), *parts)


def read(backbone: Backbone, feature: int, means_H: torch.Tensor) -> Compared:
    engine, sae = TorchEngine(backbone), planted(backbone)
    return compared(engine, backbone, sae, feature, 1.0, means_H, (WORD,), ITEMS, 8)


@pytest.fixture(scope="module")
def by_cause(session_backbone: Backbone) -> Compared:
    return read(session_backbone, CAUSE, torch.randn(session_backbone.hidden_size, generator=torch.Generator().manual_seed(1)))


def test_a_feature_that_causes_a_word_steers_in_both_forms(by_cause: Compared) -> None:
    assert by_cause.steers(COLUMN) and by_cause.steers(CLAMP)
    assert by_cause.more_than_off[COLUMN].mean > 0.2 and by_cause.systems[COLUMN].kl > 0


def test_random_columns_and_an_unrelated_difference_of_means_do_not(by_cause: Compared) -> None:
    assert not by_cause.steers(MEANS)
    for name in (name for name in by_cause.systems if name.startswith("random")):
        assert by_cause.more_than_off[name].low <= 0


def test_a_feature_that_causes_nothing_is_not_said_to_steer(backbone: Backbone) -> None:
    found = read(backbone, OTHER, torch.ones(backbone.hidden_size))
    assert not found.steers(COLUMN) and not found.steers(CLAMP)


def test_all_nulls_add_as_much_as_the_column(backbone: Backbone, by_cause: Compared) -> None:
    lengths = {name: read.length for name, read in by_cause.systems.items() if name not in (OFF, CLAMP)}
    assert all(length == pytest.approx(40.0, rel=1e-5) for length in lengths.values()) and len(lengths) == 5
    assert by_cause.systems[OFF].length == 0.0 == by_cause.systems[OFF].kl and by_cause.systems[CLAMP].length is None
    sae, cause_H = planted(backbone), planted(backbone).w_dec_FH[CAUSE]
    drawn = nulls(backbone, sae, CAUSE, 0.5, torch.ones(backbone.hidden_size))
    for one in (sae.steering(backbone, CAUSE, COLUMN, 0.5), *drawn.values()):
        assert float(one.contribution().residual[one.layer or 0].norm()) == pytest.approx(20.0, rel=1e-5)
    for name in (name for name in drawn if name.startswith("random")):
        assert abs(float(drawn[name].tensors()["vector"] @ cause_H)) < 1e-3


def test_a_column_of_the_feature_itself_is_no_null(backbone: Backbone) -> None:
    sae = planted(backbone)
    frequency_F = torch.zeros_like(sae.frequency_F)
    frequency_F[[CAUSE, OTHER, 7]] = 0.1
    with pytest.raises(DataError, match="3 live features or more, but 2 live"):
        nulls(backbone, replace(sae, frequency_F=frequency_F), CAUSE, 1.0, torch.ones(backbone.hidden_size))


def test_the_engine_keeps_nothing_of_what_was_compared(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    compared(engine, backbone, planted(backbone), OTHER, 1.0, torch.ones(backbone.hidden_size), (WORD,), ITEMS, 4)
    assert engine.loaded == ()


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_nothing_is_compared_at_no_strength(backbone: Backbone, strength: float) -> None:
    with pytest.raises(DataError, match="a finite strength above 0"):
        compared(TorchEngine(backbone), backbone, planted(backbone), CAUSE, strength, torch.ones(32), (WORD,), ITEMS, 4)
