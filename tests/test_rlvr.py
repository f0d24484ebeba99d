"""Reinforcement learning: what the reward moves, what the controls do not, and what cannot be learnt from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import fitted_lora

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoTSpec
from adapters.spec import Spec
from adapters.steering import SteeringSpec
from engine.engine import Completion, GenerationRequest
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.task import Example, Split
from tuning.batches import Row
from tuning.errors import NoSignal
from tuning.methods.grpo import GRPO, Judged
from tuning.methods.method import Fit
from tuning.methods.on_policy import Group, policy
from tuning.methods.rlvr import RLVR, RLVRSpec, historical_variance, parts_of

EXAMPLES = [Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), group=str(n)) for n in range(4)]
SOFT = SoftCoTSpec(num_thoughts=3, assistant_layers=1)


@dataclass(frozen=True)
class Vowels:
    """Right is what has a vowel among its first letters: a random model is right now and then."""

    name: str = "vowels"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]

    def is_right(self, example: Example, completion: str) -> bool:
        return any(letter in "aeiou" for letter in completion[:2])


@dataclass(frozen=True)
class Always(Vowels):
    right: bool = True

    def is_right(self, example: Example, completion: str) -> bool:
        return self.right


@dataclass(frozen=True)
class ByQuestion(Vowels):
    """Half of the questions are always answered rightly, the others never."""

    def is_right(self, example: Example, completion: str) -> bool:
        return int(example.id) % 2 == 0


def spec(**values: Any) -> RLVRSpec:
    usual = {"steps": 12, "batch_size": 16, "group_size": 8, "learning_rate": 2e-2, "max_new_tokens": 4, "beta": 0.0}
    return RLVRSpec(**(usual | values))


def fitted(backbone: Backbone, adapters: Sequence[Adapter], values: RLVRSpec, **kwargs: Any) -> Fit:
    return RLVR(values).fit(backbone, adapters, EXAMPLES, **({"task": Vowels()} | kwargs))


def rise(numbers: Sequence[float]) -> float:
    return statistics.fmean(numbers[-4:]) - statistics.fmean(numbers[:4])


def test_accuracy_rises_where_it_is_rewarded_and_not_where_a_coin_is(backbone: Backbone) -> None:
    before = backbone.weights_digest()
    rewarded, by_coin = (fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(reward=name)) for name in ("accuracy", "random"))
    assert rise(rewarded.numbers["accuracy"]) > 0.25 > rise(by_coin.numbers["accuracy"])
    assert rewarded.numbers["reward"] == rewarded.numbers["accuracy"] and set(by_coin.numbers["reward"]) != {0.0}
    assert backbone.weights_digest() == before


@pytest.mark.parametrize("adapter", [SOFT, SteeringSpec()], ids=lambda spec: spec.kind)
def test_soft_thoughts_and_steering_make_likelier_what_was_better_and_write_as_they_are(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, adapter: Spec
) -> None:
    monkeypatch.setattr("adapters.backbone.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("engine.twin.fast_bfloat16", lambda device: False)
    stack, values = Stack([new_adapter(adapter)]), spec(steps=1, batch_size=32)
    with policy(backbone, stack.adapters, EXAMPLES, values, "a fit", None) as writer:
        learner = GRPO(backbone, stack, values, writer, partial(parts_of, Vowels()), {"accuracy": 1.0})

        def worth() -> float:
            judged = [one for group in writer.history(1) for one in learner.judged(group)]
            weights = torch.tensor([one.advantage for one in judged for _ in range(one.row.num_labels)])
            with stack.attach(backbone), torch.no_grad():
                return float((weights * learner._logp(stack, [one.row for one in judged])).sum())

        with stack.attach(backbone):
            writer.write(0)
        before = worth()
        learner.fit(None, None, None)
        assert worth() > before + 0.05
        with stack.attach(backbone), torch.no_grad():
            groups = writer.write(1)
            written = [logprob for group in groups for done in group.completions for logprob in done.logprobs]
            assert learner._logp(stack, [row for group in groups for row in group.rows]).tolist() == pytest.approx(
                written, abs=1e-3
            )


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_our_loop_and_trl_learn_the_same(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, loss_type: str) -> None:
    monkeypatch.setattr("adapters.backbone.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("engine.twin.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("tuning.trl_fit.fast_bfloat16", lambda device: False)
    # Of more steps, rounding would at last flip a token that is drawn.
    values = spec(steps=2, beta=0.1, temperature=0.8, learning_rate=2e-3, micro_batch_tokens=400, loss_type=loss_type)
    theirs, ours = LoRA(LoRASpec(rank=4)), LoRA(LoRASpec(rank=4))
    by_trl = fitted(backbone, [theirs], values)
    monkeypatch.setattr("tuning.methods.grpo.only_lora", lambda adapters: None)
    by_us = fitted(backbone, [ours], values)
    assert set(by_us.numbers) == set(by_trl.numbers) and by_us.num_tokens == by_trl.num_tokens
    for name, values_of in by_us.numbers.items():
        assert values_of == pytest.approx(by_trl.numbers[name], rel=1e-2, abs=1e-4), name
    assert any(by_us.kl[1:])
    # AdamW's first steps make whole steps of gradients that are hardly more than rounding, which differs from run to run.
    mine, its = (torch.cat([lora.tensors()[key].flatten() for key in sorted(ours.tensors())]) for lora in (ours, theirs))
    assert float((mine - its).norm() / mine.norm()) < 0.05


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [("dapo", -(3 * 1.0 - 1 * 0.5) / 4), ("grpo", -(1.0 - 0.5) / 2), ("dr_grpo", -(3 * 1.0 - 1 * 0.5) / 8)],
)
def test_token_losses_are_averaged_as_the_loss_type_says(backbone: Backbone, loss_type: str, expected: float) -> None:
    lora, values = LoRA(LoRASpec(rank=4)), spec(loss_type=loss_type, max_new_tokens=4)
    told = {"accuracy": 1.0, "format": 0.0, "random": 0.0}
    longer, shorter = (
        Judged(Row((5,), (8, 9, 10)), told, 1.0, 1.0, True, True),
        Judged(Row((5,), (8,)), told, 1.0, -0.5, True, True),
    )
    with policy(backbone, [lora], EXAMPLES, values, "a fit", None) as writer, lora.attach(backbone):
        learner = GRPO(backbone, Stack([lora]), values, writer, partial(parts_of, Vowels()), {"accuracy": 1.0})
        assert learner.backward([longer, shorter], [longer, shorter])["loss"] == pytest.approx(expected, abs=1e-6)


def test_the_pull_is_the_k3_estimate_of_the_distance_to_the_backbone(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.backbone.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("engine.twin.fast_bfloat16", lambda device: False)
    lora, values, told = fitted_lora(backbone, 1), spec(beta=0.1), {"accuracy": 1.0, "format": 0.0, "random": 0.0}
    judged = Judged(Row((5, 6), (8, 9, 10)), told, 1.0, 0.0, False, True)
    with policy(backbone, [lora], EXAMPLES, values, "a fit", None) as writer, torch.no_grad():
        learner = GRPO(backbone, Stack([lora]), values, writer, partial(parts_of, Vowels()), {"accuracy": 1.0})
        base = learner._logp(Stack(()), [judged.row])
        with lora.attach(backbone), torch.enable_grad():
            adapted = learner._logp(Stack([lora]), [judged.row]).detach()
            found = learner.backward([judged], [judged])
    ratio = base - adapted
    assert found["kl"] == pytest.approx(float((ratio.exp() - ratio - 1).mean()), rel=1e-3)
    assert found["kl"] != pytest.approx(float(((-ratio).exp() + ratio - 1).mean()), rel=1e-2)
    assert found["loss"] == pytest.approx(0.1 * found["kl"], rel=1e-3)


def test_a_completion_that_did_not_end_teaches_nothing_where_it_is_masked(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, values = LoRA(LoRASpec(rank=4)), spec(mask_truncated=True, beta=0.1)
    with policy(backbone, [lora], EXAMPLES, values, "a fit", None) as writer, lora.attach(backbone):
        learner = GRPO(backbone, Stack([lora]), values, writer, partial(parts_of, Vowels()), {"accuracy": 1.0})
        told, row = {"accuracy": 1.0, "format": 0.0, "random": 0.0}, Row((5, 6, 7), (8, 9, 10))
        ended, cut = (Judged(row, told, 1.0, 1.0, True, has_ended) for has_ended in (True, False))

        def gradient(*batch: Judged) -> torch.Tensor:
            learner.backward(batch, batch)
            found = torch.cat([parameter.grad.flatten() for parameter in lora.parameters() if parameter.grad is not None])
            for parameter in lora.parameters():
                parameter.grad = None
            return found

        assert torch.allclose(gradient(ended, cut), gradient(ended), atol=1e-7) and float(gradient(ended).norm()) > 0
        assert learner.backward([cut], [cut])["loss"] == 0.0
    fit = fitted(backbone, [trained := LoRA(LoRASpec(rank=4))], spec(mask_truncated=True, steps=2))  # whose writer never ends
    assert fit.num_tokens and not any(bool(tensor.any()) for key, tensor in trained.tensors().items() if "lora_B" in key)


@pytest.mark.parametrize("adapter", [LoRASpec(rank=4), SOFT], ids=lambda spec: spec.kind)
def test_a_kill_in_the_middle_of_a_rollout_costs_what_was_being_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Spec
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    monkeypatch.setattr("tuning.rollouts.CHUNK", 8)
    complete, calls = TorchEngine.complete, list[int]()

    def counted(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
        calls.append(len(requests))
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return complete(engine, requests)

    monkeypatch.setattr(TorchEngine, "complete", counted)

    def run(directory: Path) -> tuple[Fit, dict[str, torch.Tensor]]:
        calls.clear()
        fit = fitted(backbone, [new := new_adapter(adapter)], spec(steps=4, beta=0.1), directory=directory)
        assert hasattr(new, "tensors")
        return fit, new.tensors()

    kill_at = 0
    whole, at_once = run(tmp_path / "whole")
    assert len(calls) == 8
    kill_at = 6  # the second half of the third step
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    kill_at = 0
    resumed, in_two = run(tmp_path / "killed")
    assert len(calls) == 3
    assert (resumed.numbers, resumed.num_tokens, resumed.num_generated) == (whole.numbers, whole.num_tokens, whole.num_generated)
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


def test_groups_are_counted_and_those_without_signal_too(backbone: Backbone) -> None:
    fit = fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(steps=3, group_size=4))
    assert fit.counts["groups"] == 12 and fit.counts["groups_without_an_answer"] == 12
    assert fit.counts["groups_without_signal"] == fit.counts["groups_all_right"] + fit.counts["groups_all_wrong"]
    assert fit.counts["groups_without_signal"] == pytest.approx(4 * sum(fit.numbers["without_signal"]))
    assert 0 < fit.num_generated < fit.num_tokens


@pytest.mark.parametrize(
    ("task", "reward", "said"),
    [
        (
            Always(right=False),
            "accuracy",
            r"and 0% of 48 were right. None gave an answer: raise max_new_tokens \(now 4\)",
        ),
        (Always(right=True), "accuracy", "worth 1, and 100% of 48 were right. Nothing is left to learn"),
        (ByQuestion(), "accuracy", "all of a group were worth the same, from 0 to 1 by the group, and"),
        (Vowels(), "format", "in none of the 6 groups of the first steps did they"),
    ],
)
@pytest.mark.parametrize("adapter", [LoRASpec(rank=4), SteeringSpec()], ids=lambda spec: spec.kind)
def test_rewards_that_never_differ_end_the_fit_with_the_way_out(
    backbone: Backbone, task: Vowels, reward: str, said: str, adapter: Spec
) -> None:
    with pytest.raises(NoSignal, match=said):
        fitted(backbone, [new_adapter(adapter)], spec(steps=3, reward=reward), task=task)


def test_a_control_without_signal_is_not_sent_to_easier_examples(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.methods.rlvr.first_answer", lambda text: "any")
    with pytest.raises(NoSignal, match="each completion was worth 1, and 0% of 48 were right. The reward is a control"):
        fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(steps=3, reward="format"), task=Always(right=False))


@pytest.mark.parametrize("adapter", [LoRASpec(rank=4), SteeringSpec()], ids=lambda spec: spec.kind)
def test_a_budget_that_ends_before_any_reward_differed_is_no_fit(backbone: Backbone, adapter: Spec) -> None:
    with pytest.raises(NoSignal, match=r"in none of the \d+ groups of the first steps did they"):
        fitted(backbone, [new_adapter(adapter)], spec(steps=1000, token_budget=1500), task=Always(right=False))


def test_one_example_is_chosen_by_the_variance_of_its_accuracy_over_the_passes(backbone: Backbone) -> None:
    def group(index: int, right: int) -> Group:
        texts = ["a"] * right + ["x"] * (4 - right)
        return Group(index, EXAMPLES[index], (1,), tuple(Completion(text, (1,), (0.0,), "stop", 1) for text in texts))

    groups = [group(0, 2), group(1, 0), group(2, 4), group(0, 2), group(1, 4), group(2, 3)]
    assert historical_variance(Vowels(), groups, 3) == [0.0, 0.25, 0.125**2]
    fit = fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(steps=2, examples="one", candidates=3, history_epochs=2))
    assert fit.counts["chosen_example"] in range(3) and fit.counts["chosen_variance"] > 0
    assert len(fit.losses) == 2 and fit.counts["groups"] == 4


def test_the_fit_on_the_chosen_example_begins_where_the_adapter_did(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.methods.rlvr.historical_variance", lambda *_: [0.1, 0.3, 0.2])
    values = spec(steps=1, batch_size=8, examples="one", candidates=3, history_epochs=2)
    fit = fitted(backbone, [LoRA(LoRASpec(rank=4))], values)
    assert (fit.counts["chosen_example"], fit.counts["chosen_variance"]) == (1, 0.3)
    assert fit.numbers["forward_kl"][0] == pytest.approx(0.0, abs=1e-6)


def test_the_fit_that_chooses_the_example_counts_in_the_tokens_and_gives_signs_of_life(backbone: Backbone) -> None:
    told: list[int] = []
    values = spec(steps=2, examples="one", candidates=2, history_epochs=2)
    fit = fitted(backbone, [new_adapter(SteeringSpec())], values, on_step=lambda step, steps, loss: told.append(step))
    assert told == [0, 0, 1, 2]
    alone = fitted(backbone, [new_adapter(SteeringSpec())], spec(steps=2))
    assert fit.num_tokens > 1.5 * alone.num_tokens and fit.num_generated > 1.5 * alone.num_generated
    with pytest.raises(DataError, match=r"before its first step reach token_budget = 600. Raise it, .* \(method.candidates, "):
        fitted(backbone, [new_adapter(SteeringSpec())], spec(steps=2, examples="one", candidates=2, token_budget=600))


def test_the_parts_of_a_reward_are_the_tasks_check_an_answer_line_and_a_coin() -> None:
    texts = ["Answer: even", "Answer:", "no answer at all", *("x" for _ in range(60))]
    group = Group(0, EXAMPLES[0], (1,), tuple(Completion(text, (1,), (0.0,), "stop", 1) for text in texts))
    parts = parts_of(Vowels(), group)
    assert [part["format"] for part in parts[:3]] == [1.0, 0.0, 0.0]
    assert [part["accuracy"] for part in parts[:3]] == [0.0, 0.0, 1.0]
    assert 20 < sum(part["random"] for part in parts) < 43 and parts == parts_of(Vowels(), group)
    later = parts_of(Vowels(), replace(group, key="another step"))
    assert [part["random"] for part in later] != [part["random"] for part in parts]


def test_a_prompt_that_leaves_no_room_for_the_completion_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"the longest, '[^']+', has \d+ and max_new_tokens is 500. Lower it"):
        fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(max_new_tokens=500))


def test_without_a_task_nothing_can_be_judged(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="'rlvr' goes by the task's own check, but no task was given"):
        fitted(backbone, [LoRA(LoRASpec(rank=4))], spec(), task=None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"group_size": 5}, "multiple of group_size"),
        ({"group_size": 1}, "has 2 completions or more"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"beta": -0.1}, "beta is at least 0"),
        ({"history_epochs": 1}, "2 history_epochs or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spec(**values)


@pytest.mark.parametrize("adapter", [LoRASpec(rank=4), SteeringSpec()], ids=lambda spec: spec.kind)
def test_what_is_written_counts_in_the_token_budget(backbone: Backbone, adapter: Spec) -> None:
    whole = fitted(backbone, [new_adapter(adapter)], spec(steps=4))
    budget = (whole.num_tokens + whole.num_generated) * 2 // 5
    half = fitted(backbone, [new_adapter(adapter)], spec(steps=4, token_budget=budget))
    assert len(half.losses) == 2 and half.counts["groups"] == 4
    assert half.num_generated < whole.num_generated and half.num_tokens + half.num_generated >= budget
