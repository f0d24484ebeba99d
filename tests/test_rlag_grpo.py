"""Rewards for answers and explanations: what a rationale gains, who is asked with literature, what the reward moves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import pytest
import torch

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Completion, Continuation, Engine
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError
from evaluation.task import Example, Split, reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY
from tuning.loop import OnStep
from tuning.methods.grpo import GRPO, Aggregation
from tuning.methods.method import Fit
from tuning.methods.on_policy import Group, Policy
from tuning.methods.rlag_grpo import RLAGGRPO, InTurns, RLAGGRPOSpec
from tuning.rationality import BOUND, rationality
from tuning.rollouts import rollouts

EXAMPLES = [Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), group=str(n)) for n in range(4)]


@dataclass(frozen=True)
class Vowels:
    """Right is what has a vowel among its first letters: a random model is right now and then."""

    name: str = "vowels"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]

    def is_right(self, example: Example, completion: str) -> bool:
        return any(letter in "aeiou" for letter in completion[:2])


@pytest.fixture
def engine(testbed: Backbone) -> Iterator[Engine]:
    opened = TorchEngine(testbed)
    yield opened
    opened.close()


def test_a_right_rationale_gains_anothers_loses_and_none_is_worth_nothing(testbed: Backbone, engine: Engine) -> None:
    examples = ALCHEMY.at_length(2).examples("search", 12)
    gold, others, none = [], [], []
    for example, other in zip(examples, [*examples[1:], examples[0]], strict=True):
        texts = [example.chain, "\n".join((*other.steps, f"Answer: {example.answer}")), f"Answer: {example.answer}"]
        for values, gained in zip((gold, others, none), rationality(engine, testbed, None, example, texts), strict=True):
            values.append(gained)
    assert statistics.fmean(gold) > 0.3 and statistics.fmean(others) < 0.1
    assert none == [0.0] * 12 and all(-BOUND <= gained <= BOUND for gained in gold + others)


def test_the_gain_is_the_difference_of_two_likelihoods_of_the_right_answer(backbone: Backbone) -> None:
    example = EXAMPLES[1]
    small = TorchEngine(backbone)
    try:
        (gained,) = rationality(small, backbone, None, example, ["1 + 1 = 2\nAnswer: 7"])
        prompt, head = backbone.chat_ids(reasoning_prompt(example)), len(backbone.encode("Answer:"))
        read, answer = tuple(backbone.encode("1 + 1 = 2\n")), tuple(backbone.encode("Answer: 2"))
        asked = [Continuation(prompt, answer, head), Continuation(prompt, (*read, *answer), len(read) + head)]
        without, after = (statistics.fmean(found) for found in small.score(asked))
    finally:
        small.close()
    assert gained == pytest.approx(max(-1.0, min(1.0, after - without)), abs=1e-5)


def test_steps_that_leave_no_room_for_the_answer_are_cut(backbone: Backbone) -> None:
    longest = list[int]()

    class Measured(TorchEngine):
        def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
            longest.append(max(len(one.prompt_ids) + len(one.ids) for one in continuations))
            return super().score(continuations, profile)

    engine = Measured(backbone)
    try:
        (gained,) = rationality(engine, backbone, None, EXAMPLES[1], ["and so on, " * 200 + "\nAnswer: 2"])
    finally:
        engine.close()
    assert longest == [backbone.context_length] and -BOUND <= gained <= BOUND


def spec(**values: object) -> RLAGGRPOSpec:
    usual = {"steps": 12, "batch_size": 16, "group_size": 8, "learning_rate": 2e-2, "max_new_tokens": 4, "beta": 0.0}
    return RLAGGRPOSpec(**({"num_texts": 1} | usual | values))


def fitted(
    backbone: Backbone, values: RLAGGRPOSpec, directory: Path | None = None, on_step: OnStep | None = None
) -> tuple[Fit, LoRA]:
    lora = LoRA(LoRASpec(rank=4))
    return RLAGGRPO(values).fit(backbone, [lora], EXAMPLES, on_step, task=Vowels(), directory=directory), lora


def test_every_example_is_asked_with_and_without_literature_in_turns(backbone: Backbone) -> None:
    both = [one for example in EXAMPLES for one in (example, example)]
    with rollouts(backbone) as writer:
        policy = InTurns(backbone, [], both, spec(), "", writer)
        asked = [index for step in range(8) for index in policy.prompts(step)]
    by_example = {n: [index % 2 for index in asked if index // 2 == n] for n in range(4)}
    assert all(turns == ([0, 1] * 4)[turns[0] :][:4] for turns in by_example.values())
    assert sum(index % 2 for index in asked) == len(asked) // 2


def test_literature_stands_before_the_question_and_never_does_in_the_control() -> None:
    augmented = RLAGGRPO(spec())._with_literature(EXAMPLES)
    assert all("Related literature:\nWhat comes after" in reasoning_prompt(example) for example in augmented)
    assert RLAGGRPO(spec(literature="never"))._with_literature(EXAMPLES) == EXAMPLES


def test_the_reward_rises_and_is_its_weighted_parts(backbone: Backbone) -> None:
    pytest.importorskip("trl")
    before = backbone.weights_digest()
    fit, _ = fitted(backbone, spec(rationality_weight=0.1, batch_size=32, max_new_tokens=2))
    numbers = fit.numbers
    for reward, right, gained in zip(numbers["reward"], numbers["accuracy"], numbers["rationality"], strict=True):
        assert reward == pytest.approx(right + 0.1 * gained, abs=1e-3)
    rise = statistics.fmean(numbers["accuracy"][-4:]) - statistics.fmean(numbers["accuracy"][:4])
    assert rise > 0.2 and {"right_plain", "right_augmented"} <= fit.counts.keys()
    silent = fit.counts["groups_without_signal"]
    assert silent == pytest.approx(fit.counts["groups"] * statistics.fmean(numbers["without_signal"])) and silent < 10
    assert backbone.weights_digest() == before and fit.num_generated > 0


def test_a_fit_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    values = spec(steps=4)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole, at_once = fitted(backbone, values, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(backbone, values, tmp_path / "killed", kill)
    resumed, in_two = fitted(backbone, values, tmp_path / "killed")
    assert resumed.numbers["reward"] == pytest.approx(whole.numbers["reward"], abs=1e-6)
    tensors = in_two.tensors()
    assert all(float((at_once.tensors()[key] - tensor).abs().max()) < 1e-6 for key, tensor in tensors.items())


def test_every_group_is_judged_once_by_the_adapter_that_wrote_it(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    asked = list[str]()

    def judged(engine: Engine, of: Backbone, profile: str | None, example: Example, texts: Sequence[str]) -> list[float]:
        assert "literature" not in reasoning_prompt(example), "an explanation must hold for who has only the question"
        asked.append(example.id)
        return [float(place) for place in range(len(texts))]

    monkeypatch.setattr("tuning.methods.rlag_grpo.rationality", judged)
    fit, _ = fitted(backbone, spec(steps=11, max_new_tokens=2))  # past the step at which all groups so far are looked at
    assert len(asked) == fit.counts["groups"]


def test_our_loop_and_trl_learn_the_same_of_parts_that_are_compared_one_by_one(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr("adapters.backbone.fast_bfloat16", lambda device: False)
    monkeypatch.setattr("tuning.trl_fit.fast_bfloat16", lambda device: False)
    monkeypatch.setattr(
        "tuning.methods.rlag_grpo.rationality",
        lambda engine, of, profile, example, texts: [sum(map(ord, text)) % 7 / 7 for text in texts],
    )
    values = spec(steps=2, beta=0.1, learning_rate=2e-3)
    by_trl, theirs = fitted(backbone, values)
    monkeypatch.setattr("tuning.methods.grpo.only_lora", lambda adapters: None)
    by_us, ours = fitted(backbone, values)
    _, added = fitted(backbone, values.model_copy(update={"aggregation": "sum_then_normalize"}))
    assert set(by_us.numbers) == set(by_trl.numbers)
    for name, values_of in by_us.numbers.items():
        assert values_of == pytest.approx(by_trl.numbers[name], rel=1e-2, abs=1e-4), name
    mine, its, sums = (
        torch.cat([lora.tensors()[key].flatten() for key in sorted(ours.tensors()) if "lora_B" in key])
        for lora in (ours, theirs, added)
    )
    assert float((mine - its).norm() / mine.norm()) < 0.1 < float((mine - sums).norm() / mine.norm())


def test_a_dense_part_that_outvotes_right_answers_as_a_sum_does_not_when_parts_are_compared_one_by_one(
    backbone: Backbone,
) -> None:
    group = Group(0, EXAMPLES[0], (1,), tuple(Completion(str(place), (place,), (0.0,), "stop", 1) for place in range(4)))
    told = [{"accuracy": 1.0, "rationality": 0.0}, {"accuracy": 0.0, "rationality": 9.0}]
    told += [{"accuracy": 0.0, "rationality": 0.0}] * 2
    weights, hows, first = {"accuracy": 1.0, "rationality": 0.5}, get_args(Aggregation), dict[str, list[float]]()
    for how in hows:
        learner = GRPO(backbone, Stack(()), spec(), cast(Policy, None), lambda _: told, weights, aggregation=how)
        first[how] = [one.advantage for one in learner.judged(group)]
    assert first["sum_then_normalize"][0] < 0 < first["normalize_then_sum"][0]
    assert first["normalize_then_sum"] == pytest.approx([1.25, 0.25, -0.75, -0.75], abs=1e-2)


def test_what_cannot_be_meant_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="rationality_weight is at least 0"):
        spec(rationality_weight=-1.0)
    with pytest.raises(DataError, match="no task was given"):
        RLAGGRPO(spec()).fit(backbone, [], EXAMPLES)
