"""ReasonScore: which features of a sparse autoencoder are active where a chain reasons in words.

As coded for SAE-Reasoning (Galichin et al. 2025, arXiv 2503.18878): with mu+ the mean activation of a feature at the words of a
vocabulary and their neighbours, mu- elsewhere, and H the normalised entropy of its means by group of words,

    score = mu+ / sum(mu+) * H^alpha - mu- / sum(mu-)

so that a feature of one word alone does not win. On a backbone that hardly ever writes such words the score is noise: it is
refused, with the counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.sae import SAE
from evaluation.errors import DataError
from evaluation.places import Places

# Legend: N places, F features, G groups, H hidden

# The paper's, each a group with its casings; what is capitalised stands for that form alone.
WORDS = tuple((word,) for word in "alternatively,hmm,maybe,wait,perhaps,let me,therefore,however,But,Another".split(","))
LEFT, RIGHT = 1, 2  # neighbours of a word that count as its places
ALPHA = 0.7
LEAST = 20  # occurrences of a group; with fewer it is left out
_CHUNK = 2048


class WordsHardlyOccur(DataError):
    """Too few groups of words occur in the chains."""


Groups = Sequence[Sequence[str]]  # the forms of each group


def group_name(group: Sequence[str]) -> str:
    return "/".join(group)


@dataclass(frozen=True)
class Marks:
    """Where the words stand in chains: `near_GN` has a word's own places and its neighbours, `on_GN` its own alone."""

    groups: tuple[tuple[str, ...], ...]
    counts: tuple[int, ...]
    on_GN: Tensor
    near_GN: Tensor

    @property
    def near_N(self) -> Tensor:
        return self.near_GN.any(dim=0)

    @property
    def told(self) -> str:
        return ", ".join(f"{group_name(group)} {count}" for group, count in zip(self.groups, self.counts, strict=True))


@dataclass(frozen=True)
class ReasonScore:
    """`marks` are of the groups that occur often enough; `acts_F` are the mean activations at their places."""

    marks: Marks
    score_F: Tensor
    at_words_F: Tensor
    elsewhere_F: Tensor
    entropy_F: Tensor

    def top(self, num: int) -> list[int]:
        """Features by score, best first; those whose score is not above 0 are none."""
        best = self.score_F.topk(min(num, len(self.score_F)))
        return [int(feature) for value, feature in zip(best.values, best.indices, strict=True) if value > 0]


def marked(backbone: Backbone, chains: Places, groups: Groups) -> Marks:
    """Words are found in the text that the tokens spell; a word in lower case stands for all its casings."""
    kept = tuple(tuple(form for form in group if form.strip()) for group in groups)
    if not kept or not all(kept):
        raise DataError(f"Words come in groups of one form or more, but got {[list(group) for group in groups]}. Name some.")
    patterns = [[_pattern(form) for form in group] for group in kept]
    on_GN, near_GN = (torch.zeros(len(kept), len(chains), dtype=torch.bool) for _ in range(2))
    counts = [0] * len(kept)
    for places in chains.texts():
        spelt = _Spelt.of(backbone, chains.ids_N[places].tolist())
        for group, forms in enumerate(patterns):
            for found in (match for form in forms for match in form.finditer(spelt.text)):
                first, last = spelt.token_at(found.start()), spelt.token_at(found.end() - 1)
                counts[group] += 1
                on_GN[group, places[first : last + 1]] = True
                near_GN[group, places[max(first - LEFT, 0) : last + 1 + RIGHT]] = True
    return Marks(kept, tuple(counts), on_GN, near_GN)


def share_marked(text: str, groups: Groups) -> float:
    """Occurrences of all groups for each word of the text that is written."""
    found = sum(len(_pattern(form).findall(text)) for group in groups for form in group)
    return found / max(len(text.split()), 1)


@torch.no_grad()
def reason_score(backbone: Backbone, sae: SAE, places: Places, groups: Groups = WORDS, alpha: float = ALPHA) -> ReasonScore:
    """Over the chains among the places. WordsHardlyOccur unless two groups or more stand there LEAST times each."""
    chains = places.chains
    if not len(chains):
        raise DataError("ReasonScore reads chains, but there is none among the places. Harvest some.")
    found = marked(backbone, chains, groups)
    often = [group for group, number in enumerate(found.counts) if number >= LEAST]
    if len(often) < 2:
        raise WordsHardlyOccur(
            f"ReasonScore needs two groups of words that occur {LEAST} times or more, but {len(often)} of {len(found.groups)} do "
            f"in {len(chains)} tokens of chains ({found.told}). Give groups of words that this backbone writes (--words)."
        )
    chosen = torch.tensor(often)
    marks = Marks(
        tuple(found.groups[group] for group in often),
        tuple(found.counts[group] for group in often),
        found.on_GN[chosen],
        found.near_GN[chosen],
    )
    near_N = marks.near_N
    weights_WN = torch.cat((near_N[None], ~near_N[None], marks.near_GN)).float()
    weights_WN /= weights_WN.sum(dim=1, keepdim=True).clamp(min=1)
    means_WF = torch.zeros(len(weights_WN), sae.num_features)
    for chunk_N in torch.arange(len(chains)).split(_CHUNK):
        means_WF += weights_WN[:, chunk_N] @ sae.encode(chains.states_NH[chunk_N].float())
    at_F, elsewhere_F, by_group_GF = means_WF[0], means_WF[1], means_WF[2:]
    share_GF = by_group_GF / by_group_GF.sum(dim=0).clamp(min=1e-12)
    entropy_F = -torch.xlogy(share_GF, share_GF).sum(dim=0) / torch.log(torch.tensor(float(len(often))))
    entropy_F = entropy_F.clamp(0.0, 1.0)
    score_F = at_F / at_F.sum().clamp(min=1e-12) * entropy_F**alpha - elsewhere_F / elsewhere_F.sum().clamp(min=1e-12)
    return ReasonScore(marks, score_F, at_F, elsewhere_F, entropy_F)


def difference_of_means(places: Places, near_N: Tensor) -> Tensor:
    """The mean state where the words are less the mean state elsewhere, over the chains, [H]."""
    states_NH, weights_N = places.chains.states_NH, torch.where(near_N, 1 / near_N.sum(), -1 / (~near_N).sum())
    chunks = zip(states_NH.split(_CHUNK), weights_N.split(_CHUNK), strict=True)
    return torch.stack([part_N @ chunk_NH.float() for chunk_NH, part_N in chunks]).sum(dim=0)


@dataclass(frozen=True)
class _Spelt:
    """A text and where each of its tokens ends."""

    text: str
    ends: tuple[int, ...]

    @classmethod
    def of(cls, backbone: Backbone, ids: Sequence[int]) -> _Spelt:
        # By prefixes: a token alone may be half a character, or lose the space before it.
        ends = tuple(len(backbone.decode(ids[: place + 1])) for place in range(len(ids)))
        return cls(backbone.decode(ids), ends)

    def token_at(self, char: int) -> int:
        return next((token for token, end in enumerate(self.ends) if end > char), len(self.ends) - 1)


def _pattern(form: str) -> re.Pattern[str]:
    before = r"(?<!\w)" if form[0].isalnum() else ""
    after = r"(?!\w)" if form[-1].isalnum() else ""
    return re.compile(before + re.escape(form) + after, re.IGNORECASE if form == form.lower() else 0)
