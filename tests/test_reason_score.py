"""ReasonScore: where words stand, which features they bring, and that it refuses where they hardly occur."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_sae import random_sae

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.places import CHAIN, QUESTION, Places
from evaluation.reason_score import (
    LEAST,
    WORDS,
    WordsHardlyOccur,
    difference_of_means,
    marked,
    reason_score,
    share_marked,
)

GROUPS = (("so", "thus"), ("because",))
BOTH, ONE, EVERYWHERE = 3, 4, 5  # features: at the words of both groups, at those of one, and at every place


def places_of(backbone: Backbone, texts: list[str]) -> Places:
    """Chains of these texts, their states all 0."""
    ids = [backbone.encode(text) for text in texts]
    flat = torch.tensor([token for text in ids for token in text])
    numbers = torch.tensor([number for number, text in enumerate(ids) for _ in text])
    states_NH = torch.zeros(len(flat), backbone.hidden_size, dtype=torch.bfloat16)
    return Places(flat, torch.full_like(flat, CHAIN), numbers, states_NH)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["12 + 5 = 17, so take 3 away", "Because it is due, it is so", "Thus 14", "reason about soap"] * LEAST


def where(backbone: Backbone, text: str, groups: tuple[tuple[str, ...], ...], near: bool = False) -> list[str]:
    """The texts of the places of the first group."""
    places = places_of(backbone, [text])
    found = marked(backbone, places, groups)
    mask_N = (found.near_GN if near else found.on_GN)[0]
    return [backbone.decode([int(token)]) for token in places.ids_N[mask_N]]


def test_a_word_is_found_in_all_casings_and_within_no_other_word(backbone: Backbone) -> None:
    found = marked(backbone, places_of(backbone, ["So it is. so SO, also soap, reason, so-so"]), (("so",),))
    assert found.counts == (5,)
    assert "".join(where(backbone, "Take 3, so add 5", (("so",),))).strip() == "so"


def test_what_is_capitalised_stands_for_that_form_alone(backbone: Backbone) -> None:
    assert marked(backbone, places_of(backbone, ["But add 5, but take 3. BUT"]), (("But",),)).counts == (1,)


def test_signs_and_words_of_several_tokens_are_found(backbone: Backbone) -> None:
    assert marked(backbone, places_of(backbone, ["1+1=2, let me see: 3=3"]), (("=",), ("let me",))).counts == (2, 1)
    assert "".join(where(backbone, "now let me see", (("let me",),))).strip() == "let me"


def test_one_place_before_a_word_and_two_after_count_with_it(backbone: Backbone) -> None:
    places = places_of(backbone, ["a b=c d e"])
    found = marked(backbone, places, (("=",),))
    (at,) = found.on_GN[0].nonzero()[:, 0].tolist()
    assert found.near_GN[0].nonzero()[:, 0].tolist() == [at - 1, at, at + 1, at + 2]


def test_neighbours_end_with_their_text(backbone: Backbone) -> None:
    places = places_of(backbone, ["a=", "b c d e f"])
    assert set(places.text_N[marked(backbone, places, (("=",),)).near_N].tolist()) == {0}


def test_a_feature_of_all_groups_wins_and_one_that_is_everywhere_loses(backbone: Backbone, texts: list[str]) -> None:
    places = places_of(backbone, texts)
    found = marked(backbone, places, GROUPS)
    # Columns at right angles: what is planted in the states is what is read.
    hidden = backbone.hidden_size
    eye_FH = torch.eye(hidden)
    sae = random_sae(backbone)
    sae = replace(
        sae,
        w_dec_FH=torch.cat((eye_FH, -eye_FH)),
        w_enc_HF=torch.cat((eye_FH, -eye_FH)).T.contiguous(),
        b_enc_F=torch.zeros(2 * hidden),
        b_dec_H=torch.zeros(hidden),
        max_act_F=torch.ones(2 * hidden),
        frequency_F=torch.ones(2 * hidden),
    )
    states_NH = torch.zeros(len(places), hidden)
    states_NH[found.near_N, BOTH] = states_NH[found.near_GN[0], ONE] = states_NH[:, EVERYWHERE] = 1.0
    scored = reason_score(backbone, sae, replace(places, states_NH=states_NH), GROUPS)
    assert scored.top(1) == [BOTH]
    assert scored.score_F[BOTH] > scored.score_F[ONE] > scored.score_F[EVERYWHERE]
    assert scored.entropy_F[ONE] < 0.9 < scored.entropy_F[BOTH]
    means_H = difference_of_means(replace(places, states_NH=states_NH), scored.marks.near_N)
    assert float(means_H[BOTH]) == pytest.approx(1.0, abs=1e-3) and float(means_H[EVERYWHERE]) == pytest.approx(0.0, abs=1e-3)


def test_the_score_is_the_papers_formula(backbone: Backbone, texts: list[str]) -> None:
    sae, places = random_sae(backbone), places_of(backbone, texts)
    drawn_NH = torch.randn(places.states_NH.shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    places = replace(places, states_NH=drawn_NH)
    found = marked(backbone, places, GROUPS)
    acts_NF = sae.encode(drawn_NH.float())
    at, elsewhere = (acts_NF[mask].mean(dim=0).tolist() for mask in (found.near_N, ~found.near_N))
    by_group = [acts_NF[mask].mean(dim=0).tolist() for mask in found.near_GN]
    scored = reason_score(backbone, sae, places, GROUPS, alpha=0.7)
    for feature in range(sae.num_features):
        parts = [group[feature] / (sum(each[feature] for each in by_group) or 1.0) for group in by_group]
        entropy = -sum(part * math.log(part) for part in parts if part) / math.log(len(parts))
        expected = at[feature] / sum(at) * entropy**0.7 - elsewhere[feature] / sum(elsewhere)
        assert float(scored.score_F[feature]) == pytest.approx(expected, abs=1e-5)


def test_words_that_hardly_occur_are_refused_with_their_counts(backbone: Backbone, texts: list[str]) -> None:
    places = places_of(backbone, texts)
    with pytest.raises(WordsHardlyOccur, match=r"0 of 10 do in \d+ tokens of chains \(alternatively 0, hmm 0, .* Another 0\)"):
        reason_score(backbone, random_sae(backbone), places, WORDS)
    with pytest.raises(WordsHardlyOccur, match="1 of 2 do"):
        reason_score(backbone, random_sae(backbone), places, (("so",), ("because", "therefore"), ("wait",))[::2])


def test_only_chains_are_read(backbone: Backbone, texts: list[str]) -> None:
    places = places_of(backbone, texts)
    asked = replace(places, kind_N=torch.full_like(places.kind_N, QUESTION))
    with pytest.raises(DataError, match="there is none among the places"):
        reason_score(backbone, random_sae(backbone), asked, GROUPS)


def test_groups_without_a_form_are_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="groups of one form or more"):
        marked(backbone, places_of(backbone, ["so"]), (("so",), ("", " ")))


def test_the_share_of_marked_words_is_counted_in_written_text() -> None:
    assert share_marked("so it is so", (("so",), ("is",))) == 0.75
    assert share_marked("", (("so",),)) == 0.0
