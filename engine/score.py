"""Scoring: the log-probability of given continuations, with every shared prefix computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.adapter import Prompt
from engine.bank import AdapterBank
from engine.engine import Continuation, ReadToken, TokenLogprob
from engine.slices import states_in_slices
from engine.trie import Place, Trie, batches, plant
from engine.twin import Twin

# Legend: B trees, N nodes, H hidden, Q asked places, V vocabulary

MAX_NODES = 1024  # a tree's mask is quadratic in its nodes
_LOGIT_ROWS = 256  # places whose logits exist at the same time


@dataclass(frozen=True)
class Work:
    """What is to be computed, batch by batch, and how it is read off."""

    continuations: tuple[Continuation, ...]
    trees: list[Trie]
    places: list[Place]
    starts: tuple[int, ...]  # the place of each continuation's first token in its sequence
    soft_KH: Tensor | None
    batches: tuple[tuple[int, ...], ...]

    @property
    def num_nodes(self) -> int:
        return sum(map(len, self.trees))

    @property
    def num_unshared(self) -> int:
        return sum(len(place.nodes) for place in self.places)

    def members(self, batch: Sequence[int]) -> list[int]:
        """The continuations whose trees are in the batch."""
        trees = frozenset(batch)
        return [index for index, place in enumerate(self.places) if place.tree in trees]

    def asked(self, index: int) -> Iterator[tuple[int, int]]:
        """The node that each returned token is read from, and the token."""
        continuation, nodes = self.continuations[index], self.places[index].nodes
        for offset in range(continuation.scored_from, len(continuation.ids)):
            yield nodes[self.starts[index] + offset - 1], continuation.ids[offset]


def lay_out(continuations: Sequence[Continuation], prompts: Sequence[Prompt], max_batch_tokens: int) -> Work:
    """`prompts` are the continuations' prompts as the profile has the backbone read them; equal ones are one object."""
    soft: dict[int, int] = {}  # id of a prompt to the first of its soft vectors in the table
    table: list[Tensor] = []
    sequences, starts = [], []
    for continuation, prompt in zip(continuations, prompts, strict=True):
        keys = list(prompt.ids)
        if prompt.soft_KH is not None:
            if id(prompt) not in soft:
                soft[id(prompt)] = sum(map(len, table))
                table.append(prompt.soft_KH)
            first = soft[id(prompt)]
            for offset in range(len(prompt.soft_KH)):
                keys[prompt.soft_at + offset] = -1 - first - offset
        # Nothing is read from the last token, so it needs no node.
        sequences.append((*keys, *continuation.ids[:-1]))
        starts.append(len(keys))
    trees, places = plant(sequences, starts, MAX_NODES)
    packed = tuple(tuple(batch) for batch in batches([len(tree) for tree in trees], max_batch_tokens))
    return Work(tuple(continuations), trees, places, tuple(starts), torch.cat(table) if table else None, packed)


def score_batch(
    work: Work, batch: Sequence[int], twin: Twin, bank: AdapterBank, name: str, max_tokens: int
) -> Iterator[dict[int, tuple[float, ...]] | None]:
    """Log-probabilities of the continuations whose trees are in the batch, by their index; None after each slice before."""
    for read in _computed(work, batch, twin, bank, name, max_tokens):
        if read is None:
            yield None
            continue
        taken = iter(read)
        yield {index: tuple(next(taken)[0] for _ in work.asked(index)) for index in work.members(batch)}


def read_batch(
    work: Work, batch: Sequence[int], twin: Twin, bank: AdapterBank, name: str, max_tokens: int, num_top: int
) -> Iterator[dict[int, tuple[ReadToken, ...]] | None]:
    """The same with the likeliest tokens of every place."""
    for read in _computed(work, batch, twin, bank, name, max_tokens, num_top):
        if read is None:
            yield None
            continue
        taken = iter(read)
        yield {index: tuple(ReadToken(token, *next(taken)) for _, token in work.asked(index)) for index in work.members(batch)}


_Read = tuple[float, tuple[TokenLogprob, ...]]


def _computed(
    work: Work, batch: Sequence[int], twin: Twin, bank: AdapterBank, name: str, max_tokens: int, num_top: int = 0
) -> Iterator[list[_Read] | None]:
    """What was asked of the batch, after None for every slice but the last."""
    row_of = {tree: row for row, tree in enumerate(batch)}
    asked = [(row_of[work.places[index].tree], node, token) for index in work.members(batch) for node, token in work.asked(index)]
    trees = [work.trees[tree] for tree in batch]
    width = max(map(len, trees))
    found: dict[int, _Read] = {}

    @contextmanager
    def computing() -> Iterator[None]:
        with twin.running(), bank.rows([name] * len(batch)):
            yield

    with twin.running():
        inputs = _inputs(trees, work.soft_KH, twin)
    for low, states_BTH in states_in_slices(*inputs, twin, computing, max_tokens):
        high = low + states_BTH.shape[1]
        here = [place for place, (_, node, _) in enumerate(asked) if low <= node < high]
        if here:
            there = [(row, node - low, token) for row, node, token in (asked[place] for place in here)]
            with computing():
                found.update(zip(here, zip(*_read(states_BTH, there, twin, num_top), strict=True), strict=True))
        yield None if high < width else [found[place] for place in range(len(asked))]


def _inputs(trees: Sequence[Trie], soft_KH: Tensor | None, twin: Twin) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, positions and the mask of the trees, each a row."""
    width = max(map(len, trees))
    keys_BN = torch.tensor([tree.keys + [0] * (width - len(tree)) for tree in trees], device=twin.device)
    depths_BN = torch.tensor([tree.depths + [0] * (width - len(tree)) for tree in trees], device=twin.device)
    # Padding reads itself alone: a query without any key would be NaN.
    mask_BNN = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        mask_BNN[row, : len(tree), : len(tree)] = tree.ancestors_NN()
    embeds_BNH = twin.embeddings(keys_BN.clamp(min=0))
    if soft_KH is not None:
        soft_BN = keys_BN < 0
        embeds_BNH[soft_BN] = soft_KH.to(embeds_BNH)[-1 - keys_BN[soft_BN]]
    return embeds_BNH, depths_BN, mask_BNN[:, None].to(twin.device)


def _read(
    states_BNH: Tensor, asked: Sequence[tuple[int, int, int]], twin: Twin, num_top: int
) -> tuple[list[float], list[tuple[TokenLogprob, ...]]]:
    """Log-softmax at the asked tokens, and the likeliest tokens there; a place that is asked twice is computed once."""
    places = sorted({(row, node) for row, node, _ in asked})
    slot = {place: index for index, place in enumerate(places)}
    rows, nodes = (torch.tensor(part, device=twin.device) for part in zip(*places, strict=True))
    states_PH = states_BNH[rows, nodes]
    slots_Q = torch.tensor([slot[row, node] for row, node, _ in asked], device=twin.device)
    tokens_Q = torch.tensor([token for *_, token in asked], device=twin.device)
    logprobs_Q = torch.empty(len(asked), device=twin.device)
    tops: list[tuple[TokenLogprob, ...]] = []  # by place
    for low in range(0, len(places), _LOGIT_ROWS):
        logits_PV = twin.logits(states_PH[low : low + _LOGIT_ROWS])
        norms_P = logits_PV.logsumexp(dim=-1)
        here_Q = (slots_Q >= low) & (slots_Q < low + _LOGIT_ROWS)
        local_Q = slots_Q[here_Q] - low
        logprobs_Q[here_Q] = logits_PV[local_Q, tokens_Q[here_Q]] - norms_P[local_Q]
        if num_top:
            tops.extend(_tops(logits_PV, norms_P, num_top))
    return logprobs_Q.tolist(), [tops[place] for place in slots_Q.tolist()] if num_top else [()] * len(asked)


def _tops(logits_PV: Tensor, norms_P: Tensor, count: int) -> Iterator[tuple[TokenLogprob, ...]]:
    best = logits_PV.topk(min(count, logits_PV.shape[-1]))
    for ids, logprobs in zip(best.indices.tolist(), (best.values - norms_P[:, None]).tolist(), strict=True):
        yield tuple(TokenLogprob(*pair) for pair in zip(ids, logprobs, strict=True))
