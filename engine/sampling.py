"""How one token is chosen from one row's logits, with the row's own random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Legend: V vocabulary


@dataclass(frozen=True)
class Sampler:
    """Temperature 0 is greedy. The generator belongs to one request: neighbours in the batch never draw from it.

    After the temperature `min_p` keeps what is at least so likely as that share of the likeliest, then `top_k` (0: all), then
    `top_p`, each of the probabilities that those before have left.
    """

    temperature: float
    top_p: float
    generator: torch.Generator
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def seeded(cls, temperature: float, top_p: float, seed: int, top_k: int = 0, min_p: float = 0.0) -> Sampler:
        refuse_undrawable(temperature, top_p)
        return cls(temperature, top_p, torch.Generator().manual_seed(seed), top_k, min_p)

    def choose(self, logits_V: Tensor) -> int:
        """Some logits may be minus infinity, not all."""
        if self.temperature == 0:
            return int(logits_V.argmax())
        scaled_V = logits_V.float().cpu() / self.temperature
        largest = float(scaled_V.max())
        if not math.isfinite(largest):  # so cold that the largest is beyond all numbers
            return int(logits_V.argmax())
        if self.min_p > 0:
            scaled_V = scaled_V.masked_fill(scaled_V < largest + math.log(self.min_p), -torch.inf)
        if 0 < self.top_k < len(scaled_V):
            scaled_V = _likeliest(scaled_V, self.top_k)
        probabilities_V = torch.softmax(scaled_V, dim=-1)
        if self.top_p < 1:
            probabilities_V = _nucleus(probabilities_V, self.top_p)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def refuse_undrawable(temperature: float, top_p: float) -> None:
    """ValueError where nothing can be drawn so."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ValueError(
            f"`temperature >= 0` and `0 < top_p <= 1` must hold, but got {temperature=}, {top_p=}. "
            "Use temperature 0 for greedy and top_p 1 for all tokens."
        )


def _likeliest(scaled_V: Tensor, count: int) -> Tensor:
    """Minus infinity outside the `count` largest; of equal ones the lower ids."""
    order_K = scaled_V.sort(descending=True, stable=True).indices[:count]
    return torch.full_like(scaled_V, -torch.inf).scatter(0, order_K, scaled_V[order_K])


def _nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of most likely tokens whose probabilities reach `top_p`."""
    sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
    kept_V = sorted_V.cumsum(0) - sorted_V < top_p
    kept_V[0] = True  # also where `top_p` is below the smallest number
    return torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V * kept_V)
