"""Learning rows by cross-entropy on their completions, with what keeps a fit near the backbone.

What differs between the supervised methods is where the rows come from; the loss and its retention levers are theirs in common.
The pull towards the backbone is the forward KL, KL(backbone || adapted), averaged over completion tokens: of the distances
between the two it is the one that predicts forgetting (RL's Razor, arXiv 2509.04259), and it needs one more forward with the
adapter off.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, adapters_off
from adapters.softcot import SoftCoT
from adapters.spec import Choices, Range
from evaluation.errors import DataError
from evaluation.task import Example, Task
from tuning.batches import Batch, Row, collate, endless_batches
from tuning.loop import Learner, OnStep, OnUpdate, run
from tuning.methods.method import Fit, Method, MethodSpec

# Legend: N label positions of a batch, V vocabulary

S = TypeVar("S", bound=Sized)


class SupervisedSpec(MethodSpec):
    """`loss` dft weighs each token by its own probability, without a gradient through it (Wu et al., arXiv 2508.05629)."""

    loss: Annotated[Literal["nll", "dft"], Choices(("nll", "dft"))] = "nll"
    kl_weight: Annotated[float, Range(0.0, 1.0)] = 0.0

    @model_validator(mode="after")
    def _pulls(self) -> SupervisedSpec:
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight must be at least 0, but got {self.kl_weight:g}.")
        return self


class Given(NamedTuple):
    """What a fit is given. What took long to make is kept in the directory, where there is one."""

    backbone: Backbone
    adapters: Sequence[Adapter]
    examples: Sequence[Example]
    task: Task | None = None
    directory: Path | None = None


class Prepared(NamedTuple):
    """The rows of a fit, what was written to get them, and what is to be said of them."""

    rows: Sequence[Row]
    num_generated: int = 0
    counts: Mapping[str, float] = {}


@dataclass(frozen=True)
class Supervised(Method):
    """A method that turns examples into rows once, before the first step, and then learns the rows."""

    spec: SupervisedSpec

    @abstractmethod
    def prepare(self, given: Given) -> Prepared:
        """The rows, in an order that the same call gives again."""

    def learner(self, backbone: Backbone, stack: Stack, rows: Sequence[Row]) -> Learner[Row]:
        return Rows.drawn(backbone, stack, self.spec, rows)

    def fit(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        examples: Sequence[Example],
        on_step: OnStep | None = None,
        on_update: OnUpdate | None = None,
        *,
        task: Task | None = None,
        directory: Path | None = None,
    ) -> Fit:
        started = time.monotonic()
        prepared, stack = self.prepare(Given(backbone, adapters, examples, task, directory)), Stack(adapters)
        prepared_s = time.monotonic() - started
        learner = self.learner(backbone, stack, prepared.rows)
        identity = identity_of(backbone, adapters, self.spec, prepared.rows) if directory else ""
        done = run(backbone, stack, self.spec, learner, on_step, on_update, directory, identity, prepared.num_generated)
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        return Fit(numbers, done.num_tokens, done.seconds, prepared.num_generated, {"prepare_s": prepared_s, **prepared.counts})


@dataclass(frozen=True)
class Rows:
    """A learner of rows: drawn once, a list of them a step."""

    backbone: Backbone
    stack: Stack
    spec: SupervisedSpec
    batches: Sequence[Sequence[Row]]

    @classmethod
    def drawn(cls, backbone: Backbone, stack: Stack, spec: SupervisedSpec, rows: Sequence[Row]) -> Rows:
        check_room(backbone, rows)
        drawn_tokens = 0
        batches = list[list[Row]]()
        for batch in islice(endless_batches(rows, spec.batch_size, spec.seed), spec.steps):
            batches.append(batch)
            drawn_tokens += sum(map(len, batch))
            if spec.token_budget is not None and drawn_tokens >= spec.token_budget:
                break
        think_ahead(backbone, stack, [row.prompt_ids for batch in batches for row in batch])
        return cls(backbone, stack, spec, batches)

    def batch(self, step: int) -> Sequence[Row]:
        return self.batches[step]

    def num_tokens(self, batch: Sequence[Row]) -> int:
        return sum(map(len, batch))

    def backward(self, share: Sequence[Row], batch: Sequence[Row]) -> dict[str, float]:
        spec, num_labels = self.spec, sum(row.num_labels for row in batch)
        total, pulled = 0.0, 0.0
        for part in micro_batches(share, spec.micro_batch_tokens):
            with self.backbone.autocast():
                logits_NV, labels_N = label_logits(self.backbone, collate(self.backbone, self.stack, part))
            loss = token_loss(logits_NV.float(), labels_N, spec.loss) / num_labels
            total += float(loss.detach())
            if spec.kl_weight:
                pull = pull_to_base(self.backbone, logits_NV, part) / num_labels
                pulled += float(pull.detach())
                loss = loss + spec.kl_weight * pull
            loss.backward()
        return {"loss": total} | ({"kl": pulled} if spec.kl_weight else {})


def token_loss(logits_NV: Tensor, labels_N: Tensor, loss: str) -> Tensor:
    """Summed over the tokens, in nats; dft: each token's negative log-probability times its probability, held constant."""
    if loss == "nll":
        return cross_entropy(logits_NV, labels_N, reduction="sum")
    nll_N = cross_entropy(logits_NV, labels_N, reduction="none")
    return (nll_N * torch.exp(-nll_N.detach())).sum()


def pull_to_base(backbone: Backbone, logits_NV: Tensor, rows: Sequence[Row]) -> Tensor:
    """KL(backbone || adapted) in nats, summed over the rows' label positions. The adapters are attached, and off for a moment."""
    with torch.no_grad(), adapters_off(backbone.model), backbone.autocast():
        base_NV, _ = label_logits(backbone, collate(backbone, Stack(()), rows))
    return kl_div(log_softmax(logits_NV.float(), -1), log_softmax(base_NV.float(), -1), log_target=True, reduction="sum")


def label_logits(backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N] at the label positions only: the full logits of a batch take gigabytes."""
    hidden_BTH = backbone.decoder(inputs_embeds=batch.embeds_BTH, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state
    kept_BT = batch.targets_BT != -100
    head = backbone.model.get_output_embeddings()
    logits_NV: Tensor = head(hidden_BTH[kept_BT])
    return logits_NV, batch.targets_BT[kept_BT]


def micro_batches(rows: Sequence[S], max_tokens: int) -> list[list[S]]:
    """Rows come sorted by length: a part is as many as fit under the padded limit, one at least."""
    parts: list[list[S]] = []
    for row in rows:
        if not parts or len(row) * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def check_room(backbone: Backbone, rows: Sequence[Row]) -> None:
    """Raises DataError where a prompt and its completion together are more than the backbone can read."""
    long = [row for row in rows if len(row) > backbone.context_length]
    if long:
        raise DataError(
            f"A prompt and its completion fit into the {backbone.context_length} tokens of {backbone.name!r}, but {len(long)} of "
            f"{len(rows)} rows do not; the first has {len(long[0].prompt_ids)} and {len(long[0].completion_ids)}. Shorten its "
            "question, context or rationale, or leave it out."
        )


def identity_of(backbone: Backbone, adapters: Sequence[Adapter], spec: MethodSpec, rows: Sequence[object]) -> str:
    """SHA-256 over all that decides a fit: a checkpoint of another must not be taken for its own."""
    specs = [adapter.spec.model_dump(mode="json") for adapter in adapters]
    starts = [adapter.digest() for adapter in adapters if isinstance(adapter, (LoRA, SoftCoT))]
    deciding = [backbone.fingerprint, specs, starts, spec.model_dump(mode="json"), [repr(row) for row in rows]]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def think_ahead(backbone: Backbone, stack: Stack, prompts: Sequence[tuple[int, ...]]) -> None:
    """Lets a soft-thought assistant read the prompts before any gradient is wanted: its states are then cached."""
    for adapter in stack.adapters:
        if isinstance(adapter, SoftCoT) and not adapter.spec.static and adapter.spec.num_chains == 1:
            with torch.no_grad():
                for prompt_ids in prompts:
                    adapter.states(backbone, prompt_ids)
