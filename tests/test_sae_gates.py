"""The gates of an autoencoder: what a perfect one, a useless one and a random one show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from test_reason_score import places_of
from test_sae import random_sae
from torch import Tensor

from adapters.backbone import Backbone
from adapters.sae import SAE
from engine.engine import Continuation
from evaluation.errors import DataError
from evaluation.places import HELD_OUT, OUTLIER, Places
from evaluation.reason_score import ReasonScore
from evaluation.sae_gates import fvu, recovered, sae_gates, stable
from evaluation.task import reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY

GROUPS = (("so",), ("because",))


def perfect(backbone: Backbone) -> SAE:
    """Each direction and its opposite: every state is written back as it is."""
    eye_HH, sae = torch.eye(backbone.hidden_size), random_sae(backbone)
    both_FH = torch.cat((eye_HH, -eye_HH))
    nothing_F, ones_F = torch.zeros(len(both_FH)), torch.ones(len(both_FH))
    return SAE(
        both_FH.T.contiguous(),
        nothing_F,
        both_FH,
        torch.zeros(backbone.hidden_size),
        len(both_FH) - 1,
        sae.record,
        ones_F,
        ones_F,
    )


def silent(backbone: Backbone, mean_H: Tensor) -> SAE:
    """Writes the mean, whatever it reads."""
    made = perfect(backbone)
    return replace(made, b_enc_F=torch.full_like(made.b_enc_F, -1e6), b_dec_H=mean_H)


def drawn_places(backbone: Backbone, num_texts: int = 2 * HELD_OUT) -> Places:
    places = places_of(backbone, ["12, so 5, because 3"] * num_texts)
    states_NH = torch.randn(places.states_NH.shape, generator=torch.Generator().manual_seed(0)) + 1.0
    return replace(places, states_NH=states_NH.to(torch.bfloat16))


def traces(backbone: Backbone) -> list[Continuation]:
    prompt = backbone.chat_ids("Start with 12.")
    return [Continuation(prompt, tuple(backbone.encode(text))) for text in ("Add 5, then take away 3.", "Answer: 14")]


def known_traces(testbed: Backbone) -> list[Continuation]:
    """Gold chains, which the test-bed knows: on a random backbone a state is worth nothing."""
    return [
        Continuation(testbed.chat_ids(reasoning_prompt(example)), tuple(testbed.encode(example.chain)))
        for example in ALCHEMY.examples("search", 3)
    ]


def test_a_perfect_autoencoder_explains_all_and_recovers_all(testbed: Backbone) -> None:
    assert fvu(perfect(testbed), drawn_places(testbed)) == pytest.approx(0.0, abs=1e-6)
    found = recovered(testbed, perfect(testbed), known_traces(testbed))
    assert found.share == pytest.approx(1.0, abs=1e-3) and found.share_from_zero == pytest.approx(1.0, abs=1e-3)
    assert found.plain < 0.1 < min(found.mean, found.zero)


def test_the_mean_explains_nothing_and_recovers_nothing(testbed: Backbone) -> None:
    places = drawn_places(testbed)
    assert fvu(silent(testbed, places.states_NH.float().mean(dim=0)), places) == pytest.approx(1.0, abs=1e-4)
    zero = recovered(testbed, silent(testbed, torch.zeros(testbed.hidden_size)), known_traces(testbed))
    assert zero.reconstructed == pytest.approx(zero.zero) and zero.share_from_zero == pytest.approx(0.0, abs=1e-6)


def test_states_are_replaced_from_a_chains_first_token_on_and_the_prompts_are_left(testbed: Backbone) -> None:
    # By transformers alone: what the layer puts out is 0 at every token of the chain.
    sae, total, count = perfect(testbed), 0.0, 0
    for trace in known_traces(testbed):
        begin, ids_BT = len(trace.prompt_ids), torch.tensor([[*trace.prompt_ids, *trace.ids]])

        def zeroed(module: object, inputs: object, output: Tensor, begin: int = begin) -> Tensor:
            return torch.cat((output[:, :begin], torch.zeros_like(output[:, begin:])), dim=1)

        hook = testbed.layers[sae.record.layer].register_forward_hook(zeroed)
        with torch.no_grad():
            logits_TV = testbed.model(ids_BT, use_cache=False).logits[0, begin:-1].float()
        hook.remove()
        total += float(torch.nn.functional.cross_entropy(logits_TV, ids_BT[0, begin + 1 :], reduction="sum"))
        count += len(trace.ids) - 1
    assert recovered(testbed, sae, known_traces(testbed)).zero == pytest.approx(total / count, rel=1e-4)


def test_the_backbone_is_left_as_it_was(backbone: Backbone) -> None:
    digest = backbone.weights_digest()
    recovered(backbone, perfect(backbone), traces(backbone))
    assert backbone.weights_digest() == digest
    assert not any(module._forward_hooks for module in backbone.layers)


def score_by_order(sae: SAE) -> ReasonScore:
    """The lower its number, the better a feature."""
    return cast(ReasonScore, SimpleNamespace(top=lambda num: list(range(1, num + 1))))


def test_the_same_features_are_stable_and_random_ones_are_not(backbone: Backbone) -> None:
    one, other = random_sae(backbone, seed=0), random_sae(backbone, seed=1)
    assert stable((one, one), (score_by_order(one), score_by_order(one))).share == 1.0
    found = stable((one, other), (score_by_order(one), score_by_order(other)))
    assert found.share < 0.5 and max(found.cosines) < 1.0


def test_a_top_feature_that_the_other_seed_ranks_low_is_not_stable(backbone: Backbone) -> None:
    one = random_sae(backbone, num_features=640)
    elsewhere = cast(ReasonScore, SimpleNamespace(top=lambda num: list(range(100, 100 + num))))
    assert stable((one, one), (score_by_order(one), elsewhere)).share < 0.5


def test_every_gate_must_be_passed(backbone: Backbone) -> None:
    places = drawn_places(backbone, 4 * HELD_OUT)
    good = sae_gates(backbone, (perfect(backbone), perfect(backbone)), places, traces(backbone), GROUPS)
    assert good.passed and all(good.verdicts.values()) and good.stability is not None
    dying = replace(perfect(backbone), frequency_F=(torch.arange(2 * backbone.hidden_size) > backbone.hidden_size).float())
    bad = sae_gates(backbone, (dying, perfect(backbone)), places, traces(backbone), GROUPS)
    assert not bad.passed and bad.dead == pytest.approx(0.5, abs=0.02)
    assert [passed for passed in bad.verdicts.values()] == [True, False, True, True]


def test_stability_is_not_measurable_where_the_words_hardly_occur(backbone: Backbone) -> None:
    found = sae_gates(
        backbone, (perfect(backbone), perfect(backbone)), drawn_places(backbone), traces(backbone), (("wait",), ("hm",))
    )
    assert found.stability is None and not found.passed
    assert "wait 0, hm 0" in found.not_measurable and any("not measurable" in verdict for verdict in found.verdicts)


def test_gates_need_chains_that_were_held_out(backbone: Backbone) -> None:
    pair = perfect(backbone), perfect(backbone)
    with pytest.raises(DataError, match="got 0 places of such and 2 traces"):
        sae_gates(backbone, pair, drawn_places(backbone, HELD_OUT - 1), traces(backbone), GROUPS)
    with pytest.raises(DataError, match="and 0 traces"):
        sae_gates(backbone, pair, drawn_places(backbone), [], GROUPS)


def test_outliers_are_left_out_and_every_tenth_text_is_held_out(backbone: Backbone) -> None:
    places = drawn_places(backbone)
    states_NH = places.states_NH.clone()
    states_NH[0] *= 20 * OUTLIER
    usual = replace(places, states_NH=states_NH).usual
    assert len(usual) == len(places) - 1
    assert set(usual.held_out.text_N.tolist()) == {HELD_OUT - 1, 2 * HELD_OUT - 1}
    assert len(usual.held_out) + len(usual.trained) == len(usual)
