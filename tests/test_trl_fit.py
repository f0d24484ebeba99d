"""TRL's trainers on our backbone: what they learn, what they refer to, and that they leave all as they found it."""

from __future__ import annotations

import importlib.util
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitted import fitted_lora
from small_studies import small

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.orthogonal import Apart
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.errors import DataError, MissingPackage
from tuning.errors import BadRecipe, Diverged, FitStopped
from tuning.ground import Ground
from tuning.loop import OnStep, OnUpdate, Progress
from tuning.methods.method import MethodSpec
from tuning.stop_curve import FitReading
from tuning.stop_probe import Probe
from tuning.trl_fit import Begun, Trainer, only_lora, run_trl

SPEC = MethodSpec(name="dpo", steps=6, batch_size=4, learning_rate=1e-2)


def fitted(
    backbone: Backbone,
    lora: LoRA,
    spec: MethodSpec = SPEC,
    on_step: OnStep | None = None,
    on_update: OnUpdate | None = None,
    directory: Path | None = None,
    rows_per_forward: int | None = None,
    added: Callable[[], float] = lambda: 0.0,
) -> Progress:
    """DPO on pairs of which the chosen one always says even; to its loss is added what `added` says then."""

    def trainer_of(begun: Begun) -> Trainer:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        asked = [n % 7 for n in range(spec.steps * spec.batch_size)][begun.step * spec.batch_size :]
        rows = [{"prompt": f"Start with {n}. ", "chosen": "Answer: even", "rejected": "Answer: odd"} for n in asked]
        trainer: Any = DPOTrainer(
            begun.model,
            args=DPOConfig(**begun.arguments, beta=0.5, max_length=None),
            train_dataset=Dataset.from_list(rows),
            processing_class=backbone.tokenizer,
            optimizers=begun.optimizers,
        )
        computed = trainer.compute_loss
        trainer.compute_loss = lambda *args, **given: computed(*args, **given) + added()
        made: Trainer = trainer
        return made

    logged = {"rewards/margins": "margin", "rewards/chosen": "chosen"}
    return run_trl(backbone, lora, spec, trainer_of, logged, on_step, on_update, directory, "one fit", rows_per_forward)


def test_a_trainer_fits_the_lora_that_is_attached(backbone: Backbone) -> None:
    lora, updates = LoRA(LoRASpec(rank=4)), []
    done = fitted(backbone, lora, on_update=lambda step, optimizer: updates.append((step, optimizer.param_groups[0]["lr"])))
    assert done.numbers["loss"][0] == pytest.approx(math.log(2), abs=1e-2)
    assert done.numbers["loss"][-1] < 0.9 * done.numbers["loss"][0] and done.numbers["margin"][-1] > 0.1
    assert done.num_tokens > 0 and updates[0] == (1, 1e-2) and len(updates) == SPEC.steps and updates[-1][1] < 5e-3
    assert any(bool(tensor.any()) for key, tensor in lora.tensors().items() if "lora_B" in key)


def test_the_reference_is_the_backbone_and_not_the_adapter_as_it_was(backbone: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))
    fitted(backbone, lora)
    assert abs(fitted(backbone, lora).numbers["margin"][0]) > 0.1
    assert not any("ref" in key for key in lora.tensors())


def test_what_is_kept_apart_from_an_earlier_adapter_is_so_under_a_trainer_too(backbone: Backbone) -> None:
    earlier = fitted_lora(backbone, 1)

    def overlap(weight: float) -> tuple[float, Progress]:
        lora = LoRA(LoRASpec(rank=4))
        lora.apart = Apart.of(weight, [earlier]) if weight else None
        done = fitted(backbone, lora)
        rows = {path: low.a_RI for path, low in lora.contribution().low_rank.items()}
        return float(Apart.of(1.0, [earlier]).overlap(rows)), done

    (kept, told), (free, plain) = overlap(0.5), overlap(0.0)
    assert kept < 0.8 * free
    assert len(told.numbers["penalty"]) == SPEC.steps and "penalty" not in plain.numbers


def test_all_is_left_as_it_was_found(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[object, ...]:
        model, tokenizer = backbone.model, backbone.tokenizer
        drawn = random.getstate(), tuple(np.random.get_state()[1]), tuple(torch.get_rng_state().tolist())
        configs = model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation
        return backbone.weights_digest(), set(vars(model)), configs, drawn, dict(os.environ), tokenizer.padding_side

    monkeypatch.chdir(tmp_path)
    before = state()
    fitted(backbone, LoRA(LoRASpec(rank=4)))
    assert state() == before and not list(tmp_path.iterdir()) and not backbone.model.training


def test_a_fit_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    seen: list[int] = []

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole, at_once = LoRA(LoRASpec(rank=4, dropout=0.1)), LoRA(LoRASpec(rank=4, dropout=0.1))
    done = fitted(backbone, whole, directory=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(backbone, LoRA(LoRASpec(rank=4, dropout=0.1)), on_step=kill, directory=tmp_path / "killed")
    resumed = fitted(backbone, at_once, on_step=lambda step, steps, loss: seen.append(step), directory=tmp_path / "killed")
    assert seen == [4, 5, 6]
    assert (resumed.numbers, resumed.num_tokens) == (done.numbers, done.num_tokens)
    assert all(torch.equal(whole.tensors()[key], at_once.tensors()[key]) for key in whole.tensors())
    assert fitted(backbone, LoRA(LoRASpec(rank=4, dropout=0.1)), directory=tmp_path / "killed").numbers == done.numbers


def test_a_batch_that_is_read_in_parts_teaches_the_same(backbone: Backbone) -> None:
    spec = SPEC.model_copy(update={"learning_rate": 5e-4})
    at_once, in_parts = (fitted(backbone, LoRA(LoRASpec(rank=4)), spec, rows_per_forward=rows) for rows in (4, 2))
    assert in_parts.numbers["loss"] == pytest.approx(at_once.numbers["loss"], abs=1e-2)
    assert in_parts.num_tokens == at_once.num_tokens


def test_weights_that_are_not_finite_are_never_handed_on(backbone: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))

    def spoil(step: int, num_steps: int, loss: float) -> None:
        if step == 2:
            list(lora.parameters())[-1].data.fill_(float("nan"))

    with pytest.raises(Diverged, match="must stay finite, but is nan at step 3 of 6"):
        fitted(backbone, lora, on_step=spoil)


def test_a_loss_that_explodes_under_a_trainer_is_a_divergence_and_one_that_does_not_is_none(backbone: Backbone) -> None:
    spec, losses = SPEC.model_copy(update={"steps": 10}), list[float]()

    def on_step(step: int, num_steps: int, loss: float) -> None:
        losses.append(loss)

    with pytest.raises(Diverged, match=r"must not explode, but it began at 0\.\d+ and stayed above .* at step 8 of 10"):
        fitted(backbone, LoRA(LoRASpec(rank=4)), spec, on_step, added=lambda: 50.0 if len(losses) >= 3 else 0.0)
    assert len(losses) == 7, "the eighth is the last word: five in a row, after three that say where it began"
    assert fitted(backbone, LoRA(LoRASpec(rank=4)), spec).step == 10


@pytest.mark.slow
def test_a_fit_by_a_trainer_is_read_at_its_checkpoint_and_is_the_fit_that_it_would_be_unread(ground: Ground, home: Path) -> None:
    asked: list[FitReading] = []
    one, other = (LoRA(LoRASpec(rank=4, dropout=0.1)) for _ in range(2))
    probe = probe_of(ground, home, one, asked)
    done = fitted(ground.backbone, one, on_step=lambda step, steps, loss: probe.on_step(step, steps))
    plain = fitted(ground.backbone, other)
    assert [reading.checkpoint for reading in asked] == [0.5] and asked[0].points[-1].gain_stderr > 0
    assert done.numbers == plain.numbers
    assert all(torch.equal(tensor, other.tensors()[key]) for key, tensor in one.tensors().items())


@pytest.mark.slow
def test_a_rule_that_stops_a_fit_by_a_trainer_ends_it_there_and_leaves_nothing_behind(ground: Ground, home: Path) -> None:
    backbone, lora, steps = ground.backbone, LoRA(LoRASpec(rank=4)), list[int]()
    probe, names = probe_of(ground, home, lora, [], "retention floor: lost."), set(vars(backbone.model))
    before, drawn = backbone.weights_digest(), torch.get_rng_state()

    def on_step(step: int, num_steps: int, loss: float) -> None:
        steps.append(step)
        probe.on_step(step, num_steps)

    with pytest.raises(FitStopped, match="retention floor: lost."):
        fitted(backbone, lora, on_step=on_step)
    assert steps == [1, 2, 3], "half of six, and no further update"
    assert backbone.weights_digest() == before and set(vars(backbone.model)) == names and not backbone.model.training
    assert torch.equal(torch.get_rng_state(), drawn) and backbone.model(torch.tensor([[5]])).logits.grad_fn is None
    again, whole = LoRA(LoRASpec(rank=4)), LoRA(LoRASpec(rank=4))
    assert fitted(backbone, again).numbers == fitted(backbone, whole).numbers


def probe_of(ground: Ground, home: Path, lora: LoRA, asked: list[FitReading], answer: str | None = None) -> Probe:
    """That reads the fit at half of its steps, and is then told the answer."""
    changes = {"study.stop.checkpoints": (0.5,), "study.stop.domain_items": 8, "study.stop.family_items": 4}
    recipe = small(Path(ground.backbone.name), **{"adapter.kind": "lora", **changes})

    def ask(kind: str, told: Mapping[str, Any]) -> str | None:
        asked.append(FitReading.of(told))
        return answer

    engine = TorchEngine(ground.backbone, precision="float32")
    cache = BaseCache(home / "cache" / "base", "float32")
    probe = Probe(recipe, ground, engine, cache, home / f"probe-{id(lora)}", ask, lambda: None)
    probe.begin([lora])
    return probe


def test_without_trl_the_way_out_is_told(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "trl" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingPackage, match=r"'dpo' fits a LoRA with a trainer of TRL, but trl cannot be imported. Install"):
        fitted(backbone, LoRA(LoRASpec(rank=4)))


def test_a_budget_that_is_used_up_before_the_first_step_is_refused_and_nothing_is_fitted(backbone: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))
    with pytest.raises(DataError, match="the 90 tokens that were used before its first step reach token_budget = 90"):
        run_trl(backbone, lora, SPEC.model_copy(update={"token_budget": 90}), lambda begun: pytest.fail(), {}, num_written=90)


def test_several_processes_are_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadRecipe, match="runs in one process here, but 2 were launched"):
        fitted(backbone, LoRA(LoRASpec(rank=4)))


def test_a_trainer_fits_one_lora_and_nothing_else() -> None:
    from adapters.softcot import SoftCoT, SoftCoTSpec

    lora, thoughts = LoRA(LoRASpec()), SoftCoT(SoftCoTSpec())
    several: Sequence[Any] = (lora, thoughts)
    assert only_lora([lora]) is lora and only_lora([thoughts]) is None and only_lora(several) is None
