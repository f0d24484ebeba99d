"""Self-distillation on what the adapter writes: it comes to say what the backbone says that has seen the solution."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import fitted_lora

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoTSpec
from engine.engine import Completion, GenerationRequest
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.task import Example
from tuning.methods.method import Fit
from tuning.methods.sdft import SDFT, SDFTSpec, divergence, teacher_prompts

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(4)
]


def spec(**values: Any) -> SDFTSpec:
    usual = {"steps": 16, "batch_size": 8, "group_size": 2, "learning_rate": 1e-2, "max_new_tokens": 6}
    return SDFTSpec(**(usual | values))


def fitted(backbone: Backbone, adapters: Sequence[Adapter], values: SDFTSpec, **kwargs: Any) -> Fit:
    return SDFT(values).fit(backbone, adapters, EXAMPLES, **kwargs)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_adapter_comes_nearer_to_the_backbone_that_has_seen_the_solution(backbone: Backbone, alpha: float) -> None:
    before = backbone.weights_digest()
    losses = fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(distillation_alpha=alpha, steps=32)).losses
    assert statistics.fmean(losses[-4:]) < 0.8 * statistics.fmean(losses[:4])
    assert backbone.weights_digest() == before


def test_a_teacher_that_sees_no_more_than_the_student_teaches_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.backbone.fast_bfloat16", lambda device: False)
    lora = LoRA(LoRASpec(rank=4))
    assert max(fitted(backbone, [lora], spec(steps=2, context="none", weight_decay=0.0, learning_rate=1e-6)).losses) < 1e-5
    assert min(fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(steps=2, context="other")).losses) > 1e-3
    begun = fitted_lora(backbone, 1)
    assert fitted(backbone, [begun], spec(steps=1, context="none")).losses[0] > 1e-2, "the teacher is the backbone alone"


def test_the_teacher_sees_the_solution_of_its_own_example_or_of_another(backbone: Backbone) -> None:
    own, other, none = (
        [backbone.decode(ids) for ids in teacher_prompts(backbone, EXAMPLES, spec(context=context))]
        for context in ("own", "other", "none")
    )
    assert all(example.chain in text for example, text in zip(EXAMPLES, own, strict=True))
    assert all(example.chain not in text and "Here is a right" in text for example, text in zip(EXAMPLES, other, strict=True))
    assert not any("Here is a right" in text for text in none)
    with pytest.raises(DataError, match="another example's solution, but there are 1"):
        teacher_prompts(backbone, EXAMPLES[:1], spec(context="other"))


def test_the_divergences_are_those_between_two_distributions() -> None:
    student, teacher = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.4, 0.6]])
    forward, reverse = ((a * (a / b).log()).sum() for a, b in ((teacher, student), (student, teacher)))
    middle = 0.75 * student + 0.25 * teacher
    mixed = 0.75 * (student * (student / middle).log()).sum() + 0.25 * (teacher * (teacher / middle).log()).sum()
    for alpha, expected in ((0.0, forward), (1.0, reverse), (0.25, mixed)):
        assert divergence(student.log(), teacher.log(), alpha).tolist() == pytest.approx([float(expected)], rel=1e-5)


def test_student_and_teacher_are_compared_at_the_temperature_that_was_drawn_at(backbone: Backbone) -> None:
    # Nothing is fitted yet, and the teacher sees another prompt: the hotter both are, the nearer they lie.
    cool, hot = (
        fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(steps=1, temperature=temperature, batch_size=32)).losses[0]
        for temperature in (0.5, 4.0)
    )
    assert hot < 0.2 * cool


def test_a_kill_in_the_middle_of_a_rollout_costs_what_was_being_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    monkeypatch.setattr("tuning.rollouts.CHUNK", 4)
    complete, calls = TorchEngine.complete, list[int]()

    def counted(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
        calls.append(len(requests))
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return complete(engine, requests)

    monkeypatch.setattr(TorchEngine, "complete", counted)

    def run(directory: Path) -> tuple[Fit, dict[str, torch.Tensor]]:
        calls.clear()
        lora = LoRA(LoRASpec(rank=4))
        thoughts = new_adapter(SoftCoTSpec(num_thoughts=3, assistant_layers=1))
        return fitted(backbone, [lora, thoughts], spec(steps=4), directory=directory), lora.tensors()

    kill_at = 0
    whole, at_once = run(tmp_path / "whole")
    kill_at = 6
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    kill_at = 0
    resumed, in_two = run(tmp_path / "killed")
    assert len(calls) == 3
    assert (resumed.numbers, resumed.num_tokens, resumed.num_generated) == (whole.numbers, whole.num_tokens, whole.num_generated)
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


def test_a_prompt_with_its_solution_that_leaves_no_room_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"the longest prompt, of '[^']+', has \d+ and max_new_tokens is 420. Lower it"):
        fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(max_new_tokens=420))
