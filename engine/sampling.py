"""How one token is chosen from one row's logits, with the row's own random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Legend: V vocabulary


@dataclass(frozen=True)
class Sampler:
    """Temperature 0 is greedy. The generator belongs to one request: neighbours in the batch never draw from it."""

    temperature: float
    top_p: float
    generator: torch.Generator

    @classmethod
    def seeded(cls, temperature: float, top_p: float, seed: int) -> Sampler:
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"`temperature >= 0` and `0 < top_p <= 1` must hold, but got {temperature=}, {top_p=}. "
                "Use temperature 0 for greedy and top_p 1 for all tokens."
            )
        return cls(temperature, top_p, torch.Generator().manual_seed(seed))

    def choose(self, logits_V: Tensor) -> int:
        if self.temperature == 0:
            return int(logits_V.argmax())
        scaled_V = logits_V.float().cpu() / self.temperature
        if not math.isfinite(scaled_V.max()):  # so cold that the largest is beyond all numbers
            return int(logits_V.argmax())
        probabilities_V = torch.softmax(scaled_V, dim=-1)
        if self.top_p < 1:
            probabilities_V = _nucleus(probabilities_V, self.top_p)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def _nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of most likely tokens whose probabilities reach `top_p`."""
    sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
    kept_V = sorted_V.cumsum(0) - sorted_V < top_p
    kept_V[0] = True  # also where `top_p` is below the smallest number
    return torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V * kept_V)
