"""Gradients of an adapter's own parameters, what Adam makes of them, and a sketch small enough to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapters.adapter import Stack
from adapters.backbone import Backbone
from tuning.batches import Row, collate
from tuning.checkpoints import Checkpoint
from tuning.distance import label_logits
from tuning.loop import MAX_NORM
from tuning.methods.supervised import micro_batches

# Legend: P all parameters of the adapters, flattened in their order; D dimensions of a sketch; N label positions; V vocabulary

_EPSILON = 1e-8
_MICRO_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Weighted:
    """A row and the weight of its loss, which is the mean over its labels in nats."""

    row: Row
    weight: float = 1.0


def gradient(backbone: Backbone, stack: Stack, trained: Sequence[nn.Parameter], losses: Sequence[Weighted]) -> Tensor:
    """Of the weighted mean of the rows' losses, [P] in float32 on the CPU; the adapters must be attached."""
    by_length = sorted(losses, key=lambda loss: len(loss.row))
    left = by_length
    for part in micro_batches([loss.row for loss in by_length], _MICRO_BATCH_TOKENS):
        here, left = left[: len(part)], left[len(part) :]
        with backbone.autocast():
            logits_NV, labels_N = label_logits(backbone, collate(backbone, stack, part))
        weights = torch.tensor([loss.weight / loss.row.num_labels / len(losses) for loss in here])
        weights_N = weights.repeat_interleave(torch.tensor([loss.row.num_labels for loss in here]))
        nats_N = cross_entropy(logits_NV.float(), labels_N, reduction="none")
        (nats_N * weights_N.to(nats_N)).sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat_P = torch.cat([grad.detach().float().cpu().flatten() for grad in found])
    for parameter in trained:
        parameter.grad = None
    return flat_P


def adam_direction(gradient_P: Tensor, checkpoint: Checkpoint) -> Tensor:
    """What a batch of this gradient would add to Adam's next update, up to a factor; training goes against it.

    LESS (Xia et al. 2024, arXiv 2402.04333) without what makes its sign hard to read or its numbers wrong: the first moment is
    left out, since it is the same for every row and would decide the sign for all of them; the second is corrected for its bias;
    epsilon stands outside the root; and the gradient is clipped as the fit clips it.
    """
    clipped_P = gradient_P * min(1.0, MAX_NORM / max(float(gradient_P.norm()), 1e-12))
    second_P = torch.cat([moment.flatten() for moment in checkpoint.second_moments])
    beta = checkpoint.beta2
    # Its own square belongs in: a coordinate that the fit never moved would else be divided by nothing.
    corrected_P = (beta * second_P + (1 - beta) * clipped_P**2) / (1 - beta ** (checkpoint.step + 1))
    return clipped_P / (corrected_P.sqrt() + _EPSILON)


@dataclass(frozen=True)
class CountSketch:
    """A linear map from P to D that keeps inner products, with an error of about 1 / sqrt(D) of the norms.

    Each coordinate goes, under a random sign, to one of D sums (Charikar, Chen and Farach-Colton 2002): nothing of the size P x D
    is ever made, as a Rademacher matrix would be.
    """

    dims: int
    place_P: Tensor
    sign_P: Tensor

    @classmethod
    def drawn(cls, size: int, dims: int, seed: int) -> CountSketch:
        generator = torch.Generator().manual_seed(seed)
        sign_P = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
        return cls(dims, torch.randint(0, dims, (size,), generator=generator), sign_P)

    def __call__(self, vector_P: Tensor) -> Tensor:
        """[D] in float64, of norm 1; zeros stay zeros."""
        sketch_D = torch.bincount(self.place_P, weights=(vector_P * self.sign_P).double(), minlength=self.dims)
        unit_D: Tensor = sketch_D / sketch_D.norm().clamp_min(1e-30)
        return unit_D
