"""The loop that our own methods share: AdamW over what the adapters train, a schedule, clipped gradients, and checkpoints.

A method brings a `Learner`: what each step learns from, and its gradients. Under `torchrun` or `accelerate launch` each process
takes its share of every batch; the fit is that of one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.recompute import recomputed
from adapters.whole_file import written_whole
from evaluation.errors import DataError
from tuning.batches import Row
from tuning.distance import EVERY, FORWARD_KL, forward_kl
from tuning.errors import Diverged

if TYPE_CHECKING:
    from tuning.methods.method import MethodSpec

T = TypeVar("T")
EXPLODED_RATIO, EXPLODED_NATS, EXPLODED_STEPS = 5.0, 3.0, 5  # above its start, for so many steps in a row
MAX_NORM = 1.0  # a batch's gradient is clipped to it
CHECKPOINT, CHECKPOINT_S = "fit.pt", 20.0
OnStep = Callable[[int, int, float], None]  # (step, steps, loss)
OnUpdate = Callable[[int, torch.optim.Optimizer], None]  # (step, optimizer) after its update, while the adapters are attached
# Tokens written for a fit, before its first step or by the number of its steps so far, and those that fits before it learnt.
NumWritten = int | Callable[[int], int]


class Learner(Protocol[T]):
    """`T` is what one step learns from, item by item: a row, a pair of rows, a group of rollouts."""

    def batch(self, step: int) -> Sequence[T]:
        """What step (0, 1, ...) learns from: the same for the same step and the same weights."""
        ...

    def backward(self, share: Sequence[T], batch: Sequence[T]) -> Mapping[str, float]:
        """Adds the gradient of its share of the batch; returns what the share adds to the step's numbers, "loss" among them.

        Losses and numbers are sums over the share, divided by what is counted over the whole batch: shares add up.
        """
        ...

    def num_tokens(self, batch: Sequence[T]) -> int: ...

    def rows(self, batch: Sequence[T]) -> Sequence[Row]:
        """The prompts and completions of a batch, on which the distance to the backbone is read."""
        ...


@dataclass
class Progress:
    """What is known after so many steps."""

    step: int
    numbers: dict[str, list[float]]
    num_tokens: int
    seconds: float


def run(
    backbone: Backbone,
    stack: Stack,
    spec: MethodSpec,
    learner: Learner[T],
    on_step: OnStep | None = None,
    on_update: OnUpdate | None = None,
    directory: Path | None = None,
    identity: str = "",
    num_written: NumWritten = 0,
) -> Progress:
    """Trains what the stack trains for `spec.steps` steps, or until `spec.token_budget` is used up: `num_written` counts in it.

    With a directory, a checkpoint is kept there every 20 seconds, and a fit of the same `identity` (a digest of all that decides
    it) goes on at it. Diverged where a loss, a gradient or a weight is not finite, or the loss exploded.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=backbone.device.type == "cpu")
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    kept = Kept(directory / CHECKPOINT, identity, accelerator.is_main_process) if directory else None
    progress, before = Progress(0, {}, 0, 0.0), time.monotonic()
    check_budget(spec, num_written)
    with backward_of(backbone), stack.attach(backbone), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        if kept:
            progress = kept.restore(trained, optimizer) or progress
            before -= progress.seconds
        while progress.step < spec.steps and (done := share_done(spec, progress, num_written)) < 1:
            step = progress.step
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * schedule(round(done * spec.steps), spec.steps, spec.warmup)
            batch = learner.batch(step)
            if step % EVERY == 0:
                read = forward_kl(backbone, stack, learner.rows(batch), f"{spec.seed}/{step}")
                progress.numbers.setdefault(FORWARD_KL, []).append(read)
            numbers = dict(learner.backward(batch[share], batch))
            if accelerator.num_processes > 1:
                summed = accelerator.reduce(torch.tensor(list(numbers.values()), dtype=torch.float64), "sum").tolist()
                numbers = dict(zip(numbers, summed, strict=True))
                for parameter in trained:
                    own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = accelerator.reduce(own, "sum")
            require_finite("loss", numbers["loss"], step, spec)
            require_finite("gradient's norm", float(torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)), step, spec)
            if (penalty := stack.penalty()) is not None:
                penalty.backward()  # after the clipping: it must not shrink what the method learns
                numbers["penalty"] = float(penalty.detach())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if on_update:
                on_update(step + 1, optimizer)
            progress.step += 1
            progress.num_tokens += learner.num_tokens(batch)
            for name, value in numbers.items():
                progress.numbers.setdefault(name, []).append(value)
            require_steady(progress.numbers["loss"], spec)
            progress.seconds = time.monotonic() - before
            if on_step:
                on_step(step + 1, spec.steps, numbers["loss"])
                before = time.monotonic() - progress.seconds  # what is read of a fit is no part of its time
            if kept and kept.is_due:
                kept.save(progress, trained, optimizer)
        if kept and kept.file.is_file():
            kept.save(progress, trained, optimizer)  # who is killed while the fit is measured need not fit again
        largest = torch.stack([parameter.detach().abs().max() for parameter in trained]).max()
        require_finite("largest weight", float(largest), spec.steps - 1, spec)
    return progress


class Kept:
    """The checkpoint of one fit: the weights, AdamW's state, the random state and the numbers so far.

    Of several processes one writes it, and all go on at it.
    """

    def __init__(self, file: Path, identity: str, writes: bool = True) -> None:
        self.file, self.identity, self._writes = file, identity, writes
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= CHECKPOINT_S

    def save(self, progress: Progress, trained: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Whole or not at all: it takes the place of the one before."""
        if not self._writes:
            return
        state: dict[str, Any] = {
            "identity": self.identity,
            "progress": vars(progress),
            "weights": [parameter.detach() for parameter in trained],
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        with written_whole(self.file) as part:
            torch.save(state, part)
        self._saved = time.monotonic()

    def restore(self, trained: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Progress | None:
        """Fills weights and optimizer; None where there is no checkpoint of this very fit."""
        if not self.file.is_file():
            return None
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            return None
        for parameter, stored in zip(trained, state["weights"], strict=True):
            parameter.data.copy_(stored)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        return Progress(**state["progress"])


def check_budget(spec: MethodSpec, num_written: NumWritten) -> None:
    """Raises DataError where nothing is left of the budget for the first step."""
    if share_done(spec, Progress(0, {}, 0, 0.0), num_written) >= 1:
        raise DataError(
            f"A fit learns from what was written for it, but the {written_by(num_written, 0)} tokens that were used before its "
            f"first step reach token_budget = {spec.token_budget}. Raise it, or have less written before it "
            f"({', '.join(f'method.{name}' for name in spec.written_first)})."
        )


def written_by(num_written: NumWritten, step: int) -> int:
    return num_written if isinstance(num_written, int) else num_written(step)


def share_done(spec: MethodSpec, progress: Progress, num_written: NumWritten) -> float:
    """Of the steps, or of the tokens where they are what is limited."""
    by_steps = progress.step / spec.steps
    if spec.token_budget is None:
        return by_steps
    return max(by_steps, (written_by(num_written, progress.step) + progress.num_tokens) / spec.token_budget)


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate: rising over the warm-up, then falling linearly to a tenth."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 1.0 - 0.9 * (step - rising) / max(1, steps - rising)


@contextmanager
def backward_of(backbone: Backbone) -> Iterator[None]:
    """As fits compute: quick, and sparing of memory where the backbone was loaded so."""
    with quick_backward(backbone), recomputed(backbone) if backbone.recompute else nullcontext():
        yield


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


def require_finite(what: str, value: float, step: int, spec: MethodSpec) -> None:
    """Raises Diverged, with the step (0, 1, ...) at which it was found and the way out."""
    if not math.isfinite(value):
        raise Diverged(
            f"The {what} must stay finite, but is {value} at step {step + 1} of {spec.steps} with "
            f"learning_rate={spec.learning_rate:g}. Lower it."
        )


def require_steady(losses: Sequence[float], spec: MethodSpec) -> None:
    """Raises Diverged where the loss has stayed far above its start, the median of the first three steps."""
    if len(losses) < 3 + EXPLODED_STEPS:
        return
    start = sorted(losses[:3])[1]
    most = max(EXPLODED_RATIO * start, start + EXPLODED_NATS)
    if min(losses[-EXPLODED_STEPS:]) > most:
        raise Diverged(
            f"The loss must not explode, but it began at {start:.3g} and stayed above {most:.3g} for {EXPLODED_STEPS} steps, "
            f"{losses[-1]:.3g} at step {len(losses)} of {spec.steps} with learning_rate={spec.learning_rate:g}. Lower it."
        )
