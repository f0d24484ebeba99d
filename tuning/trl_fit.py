"""Fits by TRL's trainers, on the LoRA that is attached to our backbone.

TRL does what TRL does: the losses of GRPO and DPO. Ours is what it lacks: rollouts through the engine (`rollout_func`), adapters
that are no LoRA (TRL reads token ids, and soft thoughts have none), and a fit that a kill interrupts anywhere and that then ends
as if it had not been killed. A trainer is therefore given its data step by step, in order, so that it can begin at any of them;
weights and AdamW's state are kept as the loop of our own methods keeps them, and no file is left.

What a trainer does to a process and to a model is undone, and its traps are closed: without CUDA its defaults fail (bfloat16,
gradient checkpointing, reports); the reference of a PeftModel would be a copy of the adapter, named "ref", and not the backbone;
the model's `forward` is replaced, its special tokens are aligned, and the seeds of the process are set.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone, fast_bfloat16
from adapters.lora import LoRA
from evaluation.errors import MissingPackage
from tuning.batches import Row
from tuning.distance import EVERY, FORWARD_KL, forward_kl
from tuning.errors import BadRecipe
from tuning.loop import (
    CHECKPOINT,
    MAX_NORM,
    Kept,
    NumWritten,
    OnStep,
    OnUpdate,
    Progress,
    backward_of,
    check_budget,
    require_finite,
    require_steady,
    schedule,
    share_done,
)
from tuning.methods.method import MethodSpec


class Trainer(Protocol):
    """What is asked of a trainer of TRL."""

    model: Any

    def add_callback(self, callback: Any) -> None: ...
    def remove_callback(self, callback: Any) -> None: ...
    def train(self) -> Any: ...


class Begun(NamedTuple):
    """What a trainer is made of. The method adds its own to the config's `arguments`, and gives the rows from `step` on."""

    model: Any  # PEFT's, around the backbone
    arguments: dict[str, Any]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]
    step: int  # done before; the first whose rows are wanted


def run_trl(
    backbone: Backbone,
    lora: LoRA,
    spec: MethodSpec,
    trainer_of: Callable[[Begun], Trainer],
    logged: Mapping[str, str],
    on_step: OnStep | None = None,
    on_update: OnUpdate | None = None,
    directory: Path | None = None,
    identity: str = "",
    rows_per_forward: int | None = None,
    num_written: NumWritten = 0,
    rows_of: Callable[[int], Sequence[Row]] | None = None,
) -> Progress:
    """`tuning.loop.run` by a trainer: the same schedule, clipping, checkpoints and progress.

    `rows_of` a step (0, 1, ...) are prompts and completions that it learns from: the distance to the backbone is read on them.
    `logged` names the step's numbers after the trainer's own ("rewards/margins": "margin"); its loss is among them without. A
    step's rows are read `rows_per_forward` at a time, all at once where it is None.
    """
    require_trl(spec.name)
    _refuse_processes()
    check_budget(spec, num_written)
    kept = Kept(directory / CHECKPOINT, identity) if directory else None
    with backward_of(backbone), lora.attach(backbone), _as_found(backbone), tempfile.TemporaryDirectory() as nowhere:
        trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        progress = (kept.restore(trained, optimizer) if kept else None) or Progress(0, {}, 0, 0.0)
        named = {"loss": "loss", **logged}
        watch = _Watch(backbone, lora, spec, progress, optimizer, trained, named, kept, on_step, on_update, num_written, rows_of)
        if not watch.is_done:
            arguments = _arguments(backbone, spec, progress.step, nowhere, rows_per_forward or spec.batch_size)
            # The watch sets the rate of every step itself: of a fit that goes on, the trainer counts its own steps alone.
            rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            trainer = trainer_of(Begun(lora.peft_model, arguments, (optimizer, rates), progress.step))
            _refer_to_the_backbone(trainer)
            _watch(trainer, watch)
            trainer.train()
        largest = torch.stack([parameter.detach().abs().max() for parameter in trained]).max()
        require_finite("largest weight", float(largest), spec.steps - 1, spec)
    return progress


def only_lora(adapters: Sequence[Adapter]) -> LoRA | None:
    """The adapter, where it is one LoRA and nothing else: what a trainer of TRL can fit."""
    (first, *others) = adapters
    return first if isinstance(first, LoRA) and not others else None


def rows_at_once(spec: MethodSpec, longest: int) -> int:
    """The largest part of a batch that divides it and stays within micro_batch_tokens, at `longest` tokens a row."""
    dividing = [rows for rows in range(1, spec.batch_size + 1) if spec.batch_size % rows == 0]
    return max([rows for rows in dividing if rows * longest <= spec.micro_batch_tokens], default=1)


def require_trl(method: str) -> None:
    """MissingPackage, with the way out, where TRL is not installed."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"The method {method!r} fits a LoRA with a trainer of TRL, but {' and '.join(missing)} cannot be imported. "
            "Install them with `pip install 'graftline[trl]'`, or take another method."
        )


class _Watch:
    """Reports each step, keeps a checkpoint when one is due, and seeds every step by itself, wherever the fit began."""

    def __init__(
        self,
        backbone: Backbone,
        lora: LoRA,
        spec: MethodSpec,
        progress: Progress,
        optimizer: torch.optim.Optimizer,
        trained: Sequence[torch.nn.Parameter],
        logged: Mapping[str, str],
        kept: Kept | None,
        on_step: OnStep | None,
        on_update: OnUpdate | None,
        num_written: NumWritten,
        rows_of: Callable[[int], Sequence[Row]] | None,
    ) -> None:
        self.lora, self.spec, self.progress, self.optimizer, self.trained = lora, spec, progress, optimizer, trained
        self.logged, self.kept, self.on_step, self.on_update = logged, kept, on_step, on_update
        self.backbone, self.num_written, self.rows_of = backbone, num_written, rows_of
        self.began, self.tokens_before = time.monotonic() - progress.seconds, progress.num_tokens

    @property
    def share_done(self) -> float:
        return share_done(self.spec, self.progress, self.num_written)

    @property
    def is_done(self) -> bool:
        return self.share_done >= 1

    def begin(self) -> None:
        spec = self.spec
        for group in self.optimizer.param_groups:
            group["lr"] = spec.learning_rate * schedule(round(self.share_done * spec.steps), spec.steps, spec.warmup)
        torch.manual_seed(random.Random(f"{self.spec.seed}/{self.progress.step}").getrandbits(63))

    def before_update(self) -> None:
        """The distance and the penalty: after the clipping and before the update, as in our own loop."""
        step = self.progress.step
        if self.rows_of is not None and step % EVERY == 0:
            read = forward_kl(self.backbone, Stack([self.lora]), self.rows_of(step), f"{self.spec.seed}/{step}")
            self.progress.numbers.setdefault(FORWARD_KL, []).append(read)
        if (penalty := self.lora.penalty()) is not None:
            penalty.backward()
            self.progress.numbers.setdefault("penalty", []).append(float(penalty.detach()))

    def updated(self) -> None:
        if self.on_update:
            self.on_update(self.progress.step + 1, self.optimizer)

    def end(self, logs: Mapping[str, float]) -> None:
        spec, progress = self.spec, self.progress
        require_finite("loss", logs["loss"], progress.step, spec)
        require_finite("gradient's norm", logs.get("grad_norm", 0.0), progress.step, spec)
        progress.step += 1
        progress.num_tokens = self.tokens_before + int(logs.get("num_tokens", 0))
        for theirs, ours in self.logged.items():
            progress.numbers.setdefault(ours, []).append(float(logs.get(theirs, math.nan)))
        require_steady(progress.numbers["loss"], spec)
        progress.seconds = time.monotonic() - self.began
        if self.on_step:
            self.on_step(progress.step, spec.steps, logs["loss"])
            self.began = time.monotonic() - progress.seconds
        if self.kept and (self.kept.is_due or (self.is_done and self.kept.file.is_file())):
            self.kept.save(progress, self.trained, self.optimizer)


def _watch(trainer: Trainer, watch: _Watch) -> None:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            watch.before_update()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            watch.updated()

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if "loss" in given["logs"]:  # the summary at the end has none
                watch.end(given["logs"])
                control.should_training_stop |= watch.is_done

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Callback())


def _arguments(backbone: Backbone, spec: MethodSpec, first: int, directory: str, rows_per_forward: int) -> dict[str, Any]:
    """What the config of every trainer is given: a device without CUDA, nothing reported, nothing saved, rows as they stand."""
    return {
        "output_dir": directory,
        "max_steps": spec.steps - first,
        "per_device_train_batch_size": rows_per_forward,
        "gradient_accumulation_steps": spec.batch_size // rows_per_forward,
        "max_grad_norm": MAX_NORM,
        "seed": spec.seed,
        "use_cpu": backbone.device.type == "cpu",
        "bf16": backbone.dtype == torch.float32 and fast_bfloat16(backbone.device),
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": backbone.device.type != "cpu",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }


def _refer_to_the_backbone(trainer: Trainer) -> None:
    """Without "ref", the trainers take the model with its adapters off as the reference."""
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")


def _refuse_processes() -> None:
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise BadRecipe(f"A fit by TRL runs in one process here, but {count} were launched. Launch one, or take another method.")


@contextmanager
def _as_found(backbone: Backbone) -> Iterator[None]:
    """Leaves model, tokenizer, seeds and warnings as they were; what the trainers say of themselves is for their own users."""
    import datasets
    from accelerate.state import AcceleratorState

    model, tokenizer = backbone.model, backbone.tokenizer
    config, generation = model.config, model.generation_config
    attributes = [(place, dict(vars(place))) for place in (config, generation) if place is not None]
    names, side = set(vars(model)), (tokenizer.padding_side, tokenizer.truncation_side)
    drawn, bars = (random.getstate(), np.random.get_state()), datasets.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            datasets.disable_progress_bars()
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        for place, values in attributes:
            vars(place).clear()
            vars(place).update(values)
        for name in set(vars(model)) - names:
            del model.__dict__[name]
        tokenizer.padding_side, tokenizer.truncation_side = side
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        AcceleratorState._reset_state(reset_partial_state=True)
