"""GRPO: completions to one prompt are judged, and what is better than its group becomes likelier (Shao et al., arXiv 2402.03300).

An advantage is (r - mean) / (std + 1e-4) over the group, r the weighted sum of the reward's parts; or, with several parts, the
weighted sum of theirs, standardised once more over the step, so that a dense part does not drown a binary one (GDPO, Liu et al.
2026, arXiv 2601.05242). Every step writes anew, so that the clipped ratio is 1. `beta` weighs the k3 estimate of
KL(adapted || backbone); TRL's default is 0.

Where it runs: one LoRA goes to TRL's GRPOTrainer, its rollouts written by our engine. Soft thoughts and steering vectors, which
TRL cannot read, are fitted by our own loop on the same loss; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, adapters_off
from adapters.spec import Choices, Range
from tuning.batches import Row, collate
from tuning.distance import label_logits
from tuning.errors import NoSignal
from tuning.loop import OnStep, OnUpdate, Progress, run
from tuning.methods.on_policy import Group, OnPolicySpec, Policy
from tuning.methods.supervised import micro_batches, think_ahead
from tuning.trl_fit import Begun, Trainer, only_lora, rows_at_once, run_trl

# Legend: N label positions of a batch, V vocabulary

PATIENCE = 10  # steps without any signal, from the first on, after which a fit is given up: its weights have not moved at all
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]  # of the parts of a reward, in TRL's names
WITHOUT_SIGNAL = "without_signal"
Parts = Mapping[str, float]  # of one completion's reward, by name; "accuracy" and "format" are always among them


class GRPOSpec(OnPolicySpec):
    """`loss_type` is what token losses are averaged over, in TRL's names: all tokens of the step (dapo), each completion and then
    the completions (grpo), or as many tokens as could have been written (dr_grpo, where length does not matter).

    `mask_truncated` learns nothing from completions that did not end.
    """

    beta: Annotated[float, Range(0.0, 0.1)] = 0.04
    loss_type: Annotated[Literal["dapo", "grpo", "dr_grpo"], Choices(("dapo", "grpo", "dr_grpo"))] = "dapo"
    mask_truncated: Annotated[bool, Choices((False, True))] = False

    @model_validator(mode="after")
    def _pulls(self) -> GRPOSpec:
        if self.beta < 0 or self.group_size < 2:
            raise ValueError(
                f"beta is at least 0 and a group, within which rewards are compared, has 2 completions or more, but got "
                f"{self.beta:g} and {self.group_size}."
            )
        return self


@dataclass(frozen=True)
class Judged:
    """One completion, with the parts of its reward and its advantage over its group."""

    row: Row
    parts: Parts
    reward: float
    advantage: float
    has_signal: bool  # two rewards of the group differ, or two of a part's
    has_ended: bool  # by a stop, and not by its last allowed token

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class GRPO:
    """A learner of groups. `judge` gives the parts of each completion; the reward is their sum by `weights`, 0 to log alone."""

    backbone: Backbone
    stack: Stack
    spec: GRPOSpec
    policy: Policy
    judge: Callable[[Group], Sequence[Parts]]
    weights: Mapping[str, float]
    num_before: int = 0  # tokens of the budget that are used up before the first step
    aggregation: Aggregation = "sum_then_normalize"
    _judged: dict[str, Sequence[Parts]] = field(default_factory=dict)  # by the group's key

    def fit(self, on_step: OnStep | None, on_update: OnUpdate | None, directory: Path | None) -> Progress:
        lora = only_lora(self.stack.adapters)
        think_ahead(self.backbone, self.stack, self.policy.asked)
        if lora is not None:
            done = self._by_trl(lora, on_step, on_update, directory)
        else:
            identity = self.policy.identity
            done = run(self.backbone, self.stack, self.spec, self, on_step, on_update, directory, identity, self.num_used)
        if done.step < self._patience and min(done.numbers[WITHOUT_SIGNAL]) == 1.0:  # the tokens ended before the patience
            last = self.policy.write(done.step - 1)
            self._require_signal([*self.policy.history(done.step - 1), *last])
        return done

    @property
    def _patience(self) -> int:
        return min(PATIENCE, self.spec.steps)

    def num_used(self, step: int) -> int:
        return self.num_before + self.policy.num_written(step)

    def parts(self, group: Group) -> Sequence[Parts]:
        """Judged once, by the adapter that wrote it: a judge that reads with it would later say something else."""
        if group.key not in self._judged:
            self._judged[group.key] = self.judge(group)
        return self._judged[group.key]

    def judged(self, group: Group) -> list[Judged]:
        """Each completion beside the others of its group alone."""
        parts = self.parts(group)
        rewards = [self.reward(part) for part in parts]
        if self.aggregation == "sum_then_normalize":
            compared = [(1.0, torch.tensor(rewards, dtype=torch.float64))]
        else:
            told = {name: torch.tensor([part[name] for part in parts], dtype=torch.float64) for name in self.weights}
            compared = [(weight, told[name]) for name, weight in self.weights.items() if weight]
        differ = any(bool((one != one[0]).any()) for _, one in compared)
        advantages = sum((weight * standardised(one) for weight, one in compared), torch.zeros(len(parts), dtype=torch.float64))
        return [
            Judged(row, part, reward, advantage if differ else 0.0, differ, completion.finish_reason == "stop")
            for row, part, reward, advantage, completion in zip(
                group.rows, parts, rewards, advantages.tolist(), group.completions, strict=True
            )
        ]

    def reward(self, parts: Parts) -> float:
        return sum(weight * parts[name] for name, weight in self.weights.items())

    def groups(self, step: int) -> list[Group]:
        """Written by the adapters as they are. NoSignal where no group so far, of a patient number of steps, had any."""
        groups = self.policy.write(step)
        if step + 1 == self._patience:
            self._require_signal([*self.policy.history(step), *groups])
        return groups

    def _require_signal(self, groups: Sequence[Group]) -> None:
        judged = [self.judged(group) for group in groups]
        if not any(one.has_signal for group in judged for one in group):
            raise NoSignal(_no_signal(self.spec, judged, self.weights))

    def batch(self, step: int) -> Sequence[Judged]:
        judged = [judged for group in self.groups(step) for judged in self.judged(group)]
        if self.aggregation == "normalize_then_sum":
            again = standardised(torch.tensor([one.advantage for one in judged], dtype=torch.float64)).tolist()
            judged = [
                replace(one, advantage=advantage if one.has_signal else 0.0) for one, advantage in zip(judged, again, strict=True)
            ]
        return sorted(judged, key=len)

    def rows(self, batch: Sequence[Judged]) -> Sequence[Row]:
        return [judged.row for judged in batch]

    def num_tokens(self, batch: Sequence[Judged]) -> int:
        return sum(map(len, batch))

    def backward(self, share: Sequence[Judged], batch: Sequence[Judged]) -> dict[str, float]:
        spec, num_labels = self.spec, max(1, sum(judged.row.num_labels for judged in batch if self._reads(judged)))
        numbers = {"loss": 0.0} | ({"kl": 0.0} if spec.beta else {})
        learnt = [judged for judged in share if self._reads(judged) and (judged.advantage or spec.beta)]
        for part in micro_batches(learnt, spec.micro_batch_tokens):
            rows = [judged.row for judged in part]
            logp_N = self._logp(self.stack, rows)
            advantages = [judged.advantage for judged in part for _ in range(judged.row.num_labels)]
            # The ratio to the policy that wrote is 1 and has a gradient: clipping it could not bite.
            loss_N = -(logp_N - logp_N.detach()).exp() * torch.tensor(advantages, device=logp_N.device)
            if spec.beta:
                with torch.no_grad(), adapters_off(self.backbone.model):
                    base_N = self._logp(Stack(()), rows)
                kl_N = (base_N - logp_N).exp() - (base_N - logp_N) - 1
                numbers["kl"] += float(kl_N.detach().sum()) / num_labels
                loss_N = loss_N + spec.beta * kl_N
            weights = [weight for row in rows for weight in [self._weight(row, num_labels, len(batch))] * row.num_labels]
            loss = (loss_N * torch.tensor(weights, device=logp_N.device)).sum()
            numbers["loss"] += float(loss.detach())
            loss.backward()
        numbers |= {name: sum(judged.parts[name] for judged in share) / len(batch) for name in self.weights}
        numbers["reward"] = sum(judged.reward for judged in share) / len(batch)
        numbers[WITHOUT_SIGNAL] = sum(not judged.has_signal for judged in share) / len(batch)
        return numbers

    def _reads(self, judged: Judged) -> bool:
        return judged.has_ended or not self.spec.mask_truncated

    def _weight(self, row: Row, num_labels: int, num_rows: int) -> float:
        """Of each token of the row."""
        tokens = {"dapo": num_labels, "grpo": num_rows * row.num_labels, "dr_grpo": num_rows * self.spec.max_new_tokens}
        return 1 / tokens[self.spec.loss_type]

    def _logp(self, stack: Stack, rows: Sequence[Row]) -> Tensor:
        """Of the distribution that was drawn from, [N]."""
        with self.backbone.autocast():
            logits_NV, labels_N = label_logits(self.backbone, collate(self.backbone, stack, rows))
        return -cross_entropy(logits_NV.float() / self.spec.temperature, labels_N, reduction="none")

    def _by_trl(self, lora: LoRA, on_step: OnStep | None, on_update: OnUpdate | None, directory: Path | None) -> Progress:
        spec, names = self.spec, (*self.weights, WITHOUT_SIGNAL)

        def trainer_of(begun: Begun) -> Trainer:
            from datasets import Dataset
            from trl import GRPOConfig, GRPOTrainer

            def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
                groups = self.groups(begun.step + trainer.state.global_step)
                parts = [
                    {**one.parts, WITHOUT_SIGNAL: float(not one.has_signal)} for group in groups for one in self.judged(group)
                ]
                assert len(parts) == len(prompts)
                return {
                    "prompt_ids": [list(group.prompt_ids) for group in groups for _ in group.completions],
                    "completion_ids": [list(completion.token_ids) for group in groups for completion in group.completions],
                    "logprobs": None,
                    **{name: [part[name] for part in parts] for name in names},
                }

            asked = [index for step in range(begun.step, spec.steps) for index in self.policy.prompts(step)]
            config = GRPOConfig(
                **begun.arguments,
                num_generations=spec.group_size,
                max_completion_length=spec.max_new_tokens,
                temperature=spec.temperature,
                beta=spec.beta,
                loss_type=spec.loss_type,
                mask_truncated_completions=spec.mask_truncated,
                scale_rewards="group",
                reward_weights=[self.weights.get(name, 0.0) for name in names],
                multi_objective_aggregation=self.aggregation,
                shuffle_dataset=False,
            )
            trainer: Trainer = GRPOTrainer(
                begun.model,
                reward_funcs=[_told(name) for name in names],
                args=config,
                # What is asked stands in the policy: the trainer needs a row a prompt, and gives it back to the rollout.
                train_dataset=Dataset.from_dict({"prompt": [self.policy.examples[index].id for index in asked]}),
                processing_class=self.backbone.tokenizer,
                optimizers=begun.optimizers,
                rollout_func=rollout,
            )
            return trainer

        logged = {f"rewards/{name}/mean": name for name in names}
        logged |= {"reward": "reward"} | ({"kl": "kl"} if spec.beta else {})

        def asked_rows(step: int) -> list[Row]:
            return [row for group in self.policy.written(step) for row in group.rows]

        rows, identity = rows_at_once(spec, self.policy.longest), self.policy.identity
        return run_trl(
            self.backbone,
            lora,
            spec,
            trainer_of,
            logged,
            on_step,
            on_update,
            directory,
            identity,
            rows,
            self.num_used,
            asked_rows,
        )


def standardised(values: Tensor) -> Tensor:
    """GRPO's: by the standard deviation of the sample, and a constant against its being 0."""
    return (values - values.mean()) / (values.std() + 1e-4)


def _told(name: str) -> Callable[..., list[float]]:
    """A reward function as TRL wants it, which says what the rollout brought along."""

    def told(**given: list[float]) -> list[float]:
        return given[name]

    told.__name__ = name
    return told


def _no_signal(spec: GRPOSpec, groups: Sequence[Sequence[Judged]], weights: Mapping[str, float]) -> str:
    judged = [one for group in groups for one in group]
    share = sum(one.parts["accuracy"] for one in judged) / len(judged)
    ways = {0.0: "Take easier examples, or fit a few rows by sft first.", 1.0: "Nothing is left to learn: take harder ones."}
    way = ways.get(share, "Raise group_size or temperature.")
    if not weights.get("accuracy"):  # a control: how many are right does not touch it
        way = "The reward is a control, which finds nothing to learn here: take reward = 'accuracy', or raise the temperature."
    if share == 0 and not any(one.parts["format"] for one in judged):
        way = (
            f"None gave an answer: raise max_new_tokens (now {spec.max_new_tokens}), fit a few rows by sft first, or take a "
            "backbone that ends with an answer line."
        )
    worth = sorted({one.reward for one in judged})
    said = f"each completion was worth {worth[0]:g}"
    if len(worth) > 1:
        said = f"all of a group were worth the same, from {worth[0]:g} to {worth[-1]:g} by the group"
    return (
        f"Rewards must differ within a group, but in none of the {len(groups)} groups of the first steps did they: {said}, "
        f"and {share:.0%} of {len(judged)} were right. {way}"
    )
