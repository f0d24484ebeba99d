"""Influence: which training rows lower the loss of a protected family, and which raise it.

TracIn (Pruthi et al. 2020, arXiv 2002.08484) in the form of LESS (Xia et al. 2024, arXiv 2402.04333): over several checkpoints of
one fit, the cosine between what a row adds to Adam's update and the gradient of the family's mean loss, weighted by the learning
rate, on the adapters' own parameters.

The sign: s > 0 says that training on the row lowers the family's loss; s < 0 that it raises it, and so costs reasoning. `domain`
is the same against the domain's loss. Alone this is the alignment of gradients; what leaving rows out does, tuning.removal tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from scipy import stats
from torch import Tensor, nn

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from tuning.batches import Row
from tuning.checkpoints import Checkpoint, restored
from tuning.gradients import CountSketch, Weighted, adam_direction, gradient
from tuning.queries import DOMAIN

# Legend: P all parameters of the adapters, D dimensions of a sketch

Advice = Literal["keep", "drop", "conflict"]


@dataclass(frozen=True)
class Influence:
    """Of one row: s by protected family, and against the domain; each in [-1, 1]."""

    row: str
    tokens: int  # that carry loss
    domain: float
    families: Mapping[str, float]

    @property
    def retention(self) -> float:
        """The mean over the families, each counted alike."""
        return sum(self.families.values()) / len(self.families)

    @property
    def advice(self) -> Advice:
        """drop: costs reasoning and does nothing for the domain. conflict: buys the domain with reasoning (rewrite the row)."""
        if self.retention >= 0:
            return "keep"
        return "conflict" if self.domain > 0 else "drop"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"retention": self.retention, "advice": self.advice}


@dataclass(frozen=True)
class Pool:
    """The rows to be scored, each under its id, in the form in which the fit learns them."""

    ids: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Lens:
    """One checkpoint of a fit, through which rows and queries are looked at."""

    backbone: Backbone
    stack: Stack
    trained: Sequence[nn.Parameter]
    checkpoint: Checkpoint
    sketch: CountSketch

    def query(self, losses: Sequence[Weighted]) -> Tensor:
        """The sketch of the gradient of their mean, [D] of norm 1."""
        return self.sketch(gradient(self.backbone, self.stack, self.trained, losses))

    def cosines(self, row: Row, queries: Mapping[str, Tensor]) -> dict[str, float]:
        """Of what training on the row would add to the next update, with every query: above 0 where the loss falls."""
        added_P = adam_direction(gradient(self.backbone, self.stack, self.trained, [Weighted(row)]), self.checkpoint)
        row_D = self.sketch(added_P)
        return {name: float(torch.dot(row_D, query_D)) for name, query_D in queries.items()}


@contextmanager
def lens(backbone: Backbone, adapters: Sequence[Adapter], checkpoint: Checkpoint, dims: int) -> Iterator[Lens]:
    """Inside, the unfitted adapters are attached and filled from the checkpoint.

    Each checkpoint has a sketch of its own, so that the errors of the sketches do not add up over checkpoints.
    """
    with restored(backbone, adapters, checkpoint) as (stack, trained):
        sketch = CountSketch.drawn(sum(parameter.numel() for parameter in trained), dims, seed=checkpoint.step)
        yield Lens(backbone, stack, trained, checkpoint, sketch)


def influences(
    pool: Pool, checkpoints: Sequence[Checkpoint], cosines: Mapping[tuple[int, str], Mapping[str, float]]
) -> list[Influence]:
    """The rows' cosines, by (step, row id), as means weighted by the learning rate of each checkpoint's stretch of the fit."""
    total = sum(checkpoint.learning_rate for checkpoint in checkpoints)
    found = []
    for row_id, row in zip(pool.ids, pool.rows, strict=True):
        names = cosines[checkpoints[0].step, row_id]
        weighted = {
            name: sum(point.learning_rate / total * cosines[point.step, row_id][name] for point in checkpoints) for name in names
        }
        found.append(Influence(row_id, row.num_labels, weighted.pop(DOMAIN), weighted))
    return found


def length_correlations(found: Sequence[Influence]) -> dict[str, float | None]:
    """Spearman's rank correlation of each score with the row's length; None where either does not vary.

    A mean over tokens and a cosine still favour short rows: a ranking that length explains says little of what rows hold.
    """
    tokens = [one.tokens for one in found]
    scores = {name: [one.families[name] for one in found] for name in found[0].families}
    scores |= {DOMAIN: [one.domain for one in found], "retention": [one.retention for one in found]}
    return {name: _spearman(values, tokens) for name, values in scores.items()}


def conflicts(found: Sequence[Influence], family: str | None = None) -> list[Influence]:
    """Rows that help the domain (d > 0) and cost the family, or reasoning as a whole (s < 0); the costliest first."""
    cost = {one.row: one.retention if family is None else one.families[family] for one in found}
    return sorted((one for one in found if cost[one.row] < 0 < one.domain), key=lambda one: cost[one.row])


def _spearman(values: Sequence[float], tokens: Sequence[int]) -> float | None:
    if len(set(values)) < 2 or len(set(tokens)) < 2:
        return None
    return float(stats.spearmanr(values, tokens).statistic)
