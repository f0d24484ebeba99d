"""Supervised fine-tuning: cross-entropy on the completion, with an optional pull towards the backbone.

The pull is the forward KL, KL(backbone || adapted), averaged over completion tokens: of the distances between the two it is
the one that predicts forgetting (RL's Razor, arXiv 2509.04259), and it needs one more forward with the adapter off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.lora import adapters_off
from adapters.spec import Choices, Range, Spec
from evaluation.task import Example
from tuning.batches import Batch, Row, collate, endless_batches, rows_of
from tuning.errors import Diverged

# Legend: N label positions of a batch, V vocabulary

MAX_NORM = 1.0  # a batch's gradient is clipped to it


class SFTSpec(Spec):
    """`target` is what is learnt of a row: its answer line alone, its rationale and the answer line, or the two in turn."""

    name: Literal["sft"] = "sft"
    learning_rate: Annotated[float, Range(5e-5, 1e-3, log=True)] = 5e-4
    steps: Annotated[int, Range(10, 60, log=True)] = 20
    batch_size: Annotated[int, Choices((8, 16, 32))] = 16
    target: Annotated[Literal["answer", "rationale", "mixed"], Choices(("answer", "rationale", "mixed"))] = "answer"
    prompt: Annotated[Literal["reasoning", "matching"], Choices(("reasoning", "matching"))] = "reasoning"  # see rows_of
    trace_loss: bool = True  # False: of a row with a rationale, the answer line alone carries loss
    kl_weight: Annotated[float, Range(0.0, 1.0)] = 0.0
    weight_decay: Annotated[float, Range(0.0, 0.1)] = 0.0
    warmup: float = 0.1  # share of the steps in which the learning rate rises; it then falls linearly to a tenth
    micro_batch_tokens: int = 2048  # a batch is split so that no forward holds more
    num_examples: int = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _usable(self) -> SFTSpec:
        least = {
            "steps": 1,
            "batch_size": 1,
            "num_examples": 1,
            "micro_batch_tokens": 1,
            "kl_weight": 0,
            "weight_decay": 0,
            "warmup": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, but got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1 or self.warmup > 1:
            raise ValueError(
                f"A fit needs 0 < learning_rate < 1 and warmup <= 1, but got {self.learning_rate:g} and {self.warmup:g}."
            )
        return self


@dataclass(frozen=True)
class Fit:
    """What a fit did. The adapter that it was given now holds the fitted weights."""

    losses: tuple[float, ...]  # nats per completion token, one a step
    kl: tuple[float, ...]  # forward KL to the backbone in nats per token; empty without the pull
    num_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


OnStep = Callable[[int, int, float], None]  # (step, steps, loss)
OnUpdate = Callable[[int, torch.optim.Optimizer], None]  # (step, optimizer) after its update, while the adapters are attached


@dataclass(frozen=True)
class SFT:
    spec: SFTSpec

    def fit(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        examples: Sequence[Example],
        on_step: OnStep | None = None,
        on_update: OnUpdate | None = None,
    ) -> Fit:
        """Fits the adapters in place. The backbone is the same, bit for bit, before and after.

        Under `torchrun` or `accelerate launch` each process takes its share of every batch; the fit is that of one process.
        """
        from accelerate import Accelerator

        spec, stack = self.spec, Stack(adapters)
        rows = rows_of(backbone, examples, spec.target, spec.prompt, spec.trace_loss)
        accelerator = Accelerator(cpu=backbone.device.type == "cpu")
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        batches = list(islice(endless_batches(rows, spec.batch_size, spec.seed), spec.steps))
        _think_ahead(backbone, stack, [row for batch in batches for row in batch[share]])
        losses: list[float] = []
        kls: list[float] = []
        num_tokens, started = 0, time.monotonic()
        with quick_backward(backbone), stack.attach(backbone):
            trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=spec.weight_decay)
            for step, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = spec.learning_rate * _schedule(step, spec.steps, spec.warmup)
                num_labels = sum(row.num_labels for row in batch)
                loss, kl = self._backward(backbone, stack, batch[share], num_labels)
                if accelerator.num_processes > 1:
                    loss, kl = accelerator.reduce(torch.tensor([loss, kl], dtype=torch.float64), "sum").tolist()
                    for parameter in trained:
                        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                        parameter.grad = accelerator.reduce(own, "sum")
                self._require_finite("loss", loss, step)
                self._require_finite("gradient's norm", float(torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)), step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if on_update:
                    on_update(step + 1, optimizer)
                losses.append(loss)
                kls.extend([kl] if spec.kl_weight else [])
                num_tokens += sum(map(len, batch))
                if on_step:
                    on_step(step + 1, spec.steps, loss)
            largest = torch.stack([parameter.detach().abs().max() for parameter in trained]).max()
            self._require_finite("largest weight", float(largest), spec.steps - 1)
        return Fit(tuple(losses), tuple(kls), num_tokens, time.monotonic() - started)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"The {what} must stay finite, but is {value} at step {step + 1} of {self.spec.steps} with "
                f"learning_rate={self.spec.learning_rate:g}. Lower it."
            )

    def _backward(self, backbone: Backbone, stack: Stack, rows: Sequence[Row], num_labels: int) -> tuple[float, float]:
        """What these rows add to the loss and to the KL of a batch with that many labels."""
        total, pulled = 0.0, 0.0
        for part in micro_batches(rows, self.spec.micro_batch_tokens):
            batch = collate(backbone, stack, part)
            with backbone.autocast():
                logits_NV, labels_N = label_logits(backbone, batch)
            loss = cross_entropy(logits_NV.float(), labels_N, reduction="sum") / num_labels
            if self.spec.kl_weight:
                with torch.no_grad(), adapters_off(backbone.model), backbone.autocast():
                    plain = collate(backbone, Stack(()), part)
                    base_NV, _ = label_logits(backbone, plain)
                pull = (
                    kl_div(log_softmax(logits_NV.float(), -1), log_softmax(base_NV.float(), -1), log_target=True, reduction="sum")
                    / num_labels
                )
                pulled += float(pull.detach())
                loss = loss + self.spec.kl_weight * pull
            loss.backward()
            total += float(loss.detach())
        return total - self.spec.kl_weight * pulled, pulled


def label_logits(backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N] at the label positions only: the full logits of a batch take gigabytes."""
    hidden_BTH = backbone.decoder(inputs_embeds=batch.embeds_BTH, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state
    kept_BT = batch.targets_BT != -100
    head = backbone.model.get_output_embeddings()
    logits_NV: Tensor = head(hidden_BTH[kept_BT])
    return logits_NV, batch.targets_BT[kept_BT]


@contextmanager
def quick_backward(backbone: Backbone) -> Iterator[None]:
    """On a CPU the backward of SDPA takes about twice as long as that of plain matrix products at these lengths."""
    attention = backbone.model.config._attn_implementation
    if backbone.device.type == "cpu":
        backbone.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.model.set_attn_implementation(attention)


def micro_batches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Rows come sorted by length: a part is as many as fit under the padded limit, one at least."""
    parts: list[list[Row]] = []
    for row in rows:
        if not parts or len(row) * (len(parts[-1]) + 1) > max_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 1.0 - 0.9 * (step - rising) / max(1, steps - rising)


def _think_ahead(backbone: Backbone, stack: Stack, rows: Sequence[Row]) -> None:
    """Lets a soft-thought assistant read the prompts before any gradient is wanted: its states are then cached."""
    from adapters.softcot import SoftCoT

    for adapter in stack.adapters:
        if isinstance(adapter, SoftCoT) and not adapter.spec.static:
            with torch.no_grad():
                for row in rows:
                    adapter.states(backbone, row.prompt_ids)
