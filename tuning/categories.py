"""Few categories of states: a TopK autoencoder with a handful of latents, whose strongest latent names the category."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluation.errors import DataError

# Legend: N states, H hidden, K categories

_STEPS, _RATE = 300, 1e-2
_MAX_ACTIVE = 3


class Encoder(NamedTuple):
    """The category of a state is the argmax of `weight_KH @ state + bias_K`."""

    weight_KH: Tensor
    bias_K: Tensor
    explained: float  # share of the states' variance that the autoencoder gives back


def fit_categories(states_NH: Tensor, count: int, seed: int = 0) -> Encoder:
    """Of one category every state is. Latents begin as states that lie far apart, so that few of them die."""
    width = states_NH.shape[1]
    if count == 1:
        return Encoder(torch.zeros(1, width), torch.zeros(1), 0.0)
    if len(states_NH) < 2 * count:
        raise DataError(
            f"Categories are fitted on two sentences each or more, but got {len(states_NH)} for {count}. Take more items "
            "or fewer categories."
        )
    centre_H = states_NH.mean(dim=0)
    scale = (states_NH - centre_H).norm(dim=1).mean().clamp(min=1e-8)
    data_NH = (states_NH - centre_H) / scale
    decoder = nn.Parameter(_apart(data_NH, count, seed))
    encoder, bias = nn.Parameter(decoder.detach().clone()), nn.Parameter(torch.zeros(count))
    adam, num_active = torch.optim.Adam((decoder, encoder, bias), lr=_RATE), min(_MAX_ACTIVE, (count + 1) // 2)

    def made_NH() -> Tensor:
        latents_NK = data_NH @ encoder.T + bias
        kept = latents_NK.topk(num_active, dim=1)
        sparse_NK = torch.zeros_like(latents_NK).scatter(1, kept.indices, kept.values.relu())
        return torch.mm(sparse_NK, decoder / decoder.norm(dim=1, keepdim=True).clamp(min=1e-8))

    for _ in range(_STEPS):
        loss = (data_NH - made_NH()).pow(2).sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        unexplained = (data_NH - made_NH()).pow(2).sum() / data_NH.pow(2).sum().clamp(min=1e-12)
    weight_KH = encoder.detach() / scale
    return Encoder(weight_KH, bias.detach() - weight_KH @ centre_H, 1.0 - float(unexplained))


def _apart(data_NH: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the states, each drawn by its squared distance to those before (k-means++), made one long."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(data_NH), (), generator=generator))]
    while len(chosen) < count:
        squared_N = torch.cdist(data_NH, data_NH[chosen]).min(dim=1).values.pow(2) + 1e-12
        chosen.append(int(torch.multinomial(squared_N, 1, generator=generator)))
    found_KH = data_NH[chosen]
    return torch.div(found_KH, found_KH.norm(dim=1, keepdim=True).clamp(min=1e-8))
