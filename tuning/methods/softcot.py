"""SoftCoT and SoftCoT++: soft thoughts fitted on written chains, several sets of them pushed apart.

With one set it is the cross-entropy of the chain after the thoughts (arXiv 2502.12134). With N sets (arXiv 2505.11484) the loss
is the sum over the sets of that cross-entropy, and per example a contrast (InfoNCE): each set of thoughts, flattened and
normalised, must be more like itself under dropout than like the other sets. What is stepped on is that sum divided by N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, normalize

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.softcot import SoftCoT
from adapters.spec import Choices, Range
from evaluation.task import Example, Task
from tuning.batches import Row, check_rationales, padded, rows_of
from tuning.distance import label_logits, pull_to_base
from tuning.loop import Learner
from tuning.methods.method import Given
from tuning.methods.supervised import (
    Prepared,
    Rows,
    Supervised,
    SupervisedSpec,
    check_room,
    parts_of,
    token_loss,
)

# Legend: N chains, K thoughts, H hidden, F = K * H

TEMPERATURE, DROPOUT = 0.05, 0.5  # of the contrast, as published


class SoftCoTFitSpec(SupervisedSpec):
    """`contrast_weight` is that of the InfoNCE term, 1 as published; a single set of thoughts has none."""

    name: Literal["softcot"] = "softcot"
    target: Annotated[Literal["answer", "rationale", "mixed"], Choices(("answer", "rationale", "mixed"))] = "rationale"
    prompt: Annotated[Literal["reasoning", "matching"], Choices(("reasoning", "matching"))] = "reasoning"
    contrast_weight: Annotated[float, Range(0.0, 2.0)] = 1.0


@dataclass(frozen=True)
class SoftCoTPlusPlus(Supervised):
    spec: SoftCoTFitSpec
    spec_type = SoftCoTFitSpec
    splits = True
    kinds = frozenset({"softcot"})

    def check(self, examples: Sequence[Example], task: Task) -> None:
        check_rationales(examples, self.spec.target)

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        check_room(backbone, rows_of(backbone, examples, self.spec.target, self.spec.prompt), examples)

    def prepare(self, given: Given) -> Prepared:
        return Prepared(rows_of(given.backbone, given.examples, self.spec.target, self.spec.prompt))

    def learner(self, backbone: Backbone, stack: Stack, rows: Sequence[Row], replay: Sequence[Row] = ()) -> Learner[Row]:
        plain = Rows.drawn(backbone, stack, self.spec, rows, replay)
        (softcot,) = stack.adapters
        assert isinstance(softcot, SoftCoT)
        return plain if softcot.spec.num_chains == 1 else Chains(plain, softcot, self.spec)


@dataclass(frozen=True)
class Chains:
    """A learner of rows under every set of thoughts."""

    plain: Rows
    softcot: SoftCoT
    spec: SoftCoTFitSpec

    @property
    def num_chains(self) -> int:
        return self.softcot.spec.num_chains

    def batch(self, step: int) -> Sequence[Row]:
        return self.plain.batch(step)

    def rows(self, batch: Sequence[Row]) -> Sequence[Row]:
        return batch  # as the first set has them, under which likelihoods are read

    def num_tokens(self, batch: Sequence[Row]) -> int:
        """The assistant's reading is among what is learnt: gradients go through it to the initial tokens, in every step anew."""
        read = sum(self.softcot.num_read(self.plain.backbone, row.prompt_ids) for row in batch)
        return self.num_chains * (self.plain.num_tokens(batch) + read)

    def backward(self, share: Sequence[Row], batch: Sequence[Row]) -> dict[str, float]:
        spec, count, learnt = self.spec, self.num_chains, [row for row in batch if not row.held]
        num_labels = count * sum(row.num_labels for row in learnt)
        num_pulled = count * sum(row.num_labels for row in batch if row.held) if spec.holds else num_labels
        told = {"loss": 0.0, "contrast": 0.0, "kl": 0.0}
        for held in (False, True):
            for part in parts_of(share, batch, held, max(1, spec.micro_batch_tokens // count)):
                logits_NV, labels_N, thoughts, each = self._read(part)
                loss = logits_NV.new_zeros((), dtype=torch.float32)
                if not held:
                    written = token_loss(logits_NV.float(), labels_N, spec.loss) / num_labels
                    apart = torch.stack([contrast(soft_NKH) for soft_NKH in thoughts]).sum() / len(learnt)
                    loss = written + spec.contrast_weight / count * apart
                    told["loss"] += float(written.detach())
                    told["contrast"] += float(apart.detach())
                if spec.kl_weight and held == spec.holds:
                    pull = pull_to_base(self.plain.backbone, logits_NV, each) / num_pulled
                    told["kl"] += float(pull.detach())
                    loss = loss + spec.kl_weight * pull
                loss.backward()
        return told if spec.kl_weight else {name: value for name, value in told.items() if name != "kl"}

    def _read(self, part: Sequence[Row]) -> tuple[Tensor, Tensor, list[Tensor], list[Row]]:
        """Logits and labels of every row under every set of thoughts, the thoughts by row, and the row of each reading."""
        backbone = self.plain.backbone
        each = [row for row in part for _ in range(self.num_chains)]
        with backbone.autocast():
            thoughts = [self.softcot.thoughts(backbone, row.prompt_ids) for row in part]
            prompts = [
                self.softcot.placed(backbone, row.prompt_ids, soft_KH, chain)
                for row, soft_NKH in zip(part, thoughts, strict=True)
                for chain, soft_KH in enumerate(soft_NKH)
            ]
            logits_NV, labels_N = label_logits(backbone, padded(backbone, prompts, each))
        return logits_NV, labels_N, thoughts, each


def contrast(soft_NKH: Tensor) -> Tensor:
    """InfoNCE over the sets of one example, in nats: log N where all sets are alike, towards 0 where they are apart.

    Of each example by itself: sets of other examples in the batch are neither its positives nor its negatives.
    """
    student_NF = soft_NKH.flatten(1).float()
    teacher_NF = dropout(student_NF, DROPOUT, training=True)
    logits_NN = normalize(student_NF, dim=-1) @ normalize(teacher_NF, dim=-1).T / TEMPERATURE
    return cross_entropy(logits_NN, torch.arange(len(logits_NN), device=logits_NN.device))
