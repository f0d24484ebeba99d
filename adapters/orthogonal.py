"""A LoRA kept apart from earlier ones: O-LoRA's penalty on what their input subspaces share (Wang et al. 2023, arXiv 2310.14152).

The penalty is `weight * sum |A_earlier A_new^T|`, over all modules and entries. Where it is 0, the earlier adapters and the new
one read different directions of every input, so that their sum disturbs neither. The published second term, the new adapter's own
norm, is AdamW's weight decay here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapters.adapter import Contribution
from adapters.errors import RefusedAdapter
from adapters.weights import digest_of

# Legend: E rows of all earlier A, R rank of the new one, I inputs of the module


class LowRankAdapter(Protocol):
    def contribution(self) -> Contribution: ...


@dataclass(frozen=True)
class Apart:
    weight: float
    earlier: Mapping[str, Tensor]  # [E, I] by module path

    @classmethod
    def of(cls, weight: float, adapters: Sequence[LowRankAdapter]) -> Apart:
        rows: dict[str, list[Tensor]] = {}
        for adapter in adapters:
            for path, update in adapter.contribution().low_rank.items():
                rows.setdefault(path, []).append(update.a_RI.detach().float())
        return cls(weight, {path: torch.cat(parts) for path, parts in rows.items()})

    def penalty(self, new: Mapping[str, Tensor]) -> Tensor:
        """`new` is A of each module of the new adapter, [R, I], by path."""
        return self.overlap(new) * self.weight

    def overlap(self, new: Mapping[str, Tensor]) -> Tensor:
        shared = [path for path in new if path in self.earlier]
        if not shared:
            raise RefusedAdapter(
                f"An adapter is kept apart from earlier ones in modules that both update, but of {len(new)} and "
                f"{len(self.earlier)} none is the same. Leave the earlier ones out: they share nothing."
            )
        return torch.stack([(self.earlier[path].to(new[path]) @ new[path].T).abs().sum() for path in shared]).sum()

    def digest(self) -> str:
        return digest_of(self.earlier, self.weight)
