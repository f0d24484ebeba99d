"""Adapters that were really fitted to a tiny model that can do a task, and spoilt it, each in one way that is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Row
from evaluation.measure import Measure
from evaluation.measures.budget import BudgetAccuracy
from evaluation.measures.shift import ShiftRobustness
from evaluation.shifts import shifts_of
from evaluation.task import REASON, Example, Split, Task
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.belief import BELIEF, Asked
from tuning.batches import rows_of
from tuning.methods.method import Given
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.supervised import Prepared

# Without its trace the test-bed knows the answer after one operation, so that nothing depends on a trace there.
CHAINS = ALCHEMY.at_length(2, 3)
ITEMS = CHAINS.examples("gate", 24)
# Of 0.15 million parameters, made from stories of the train split by `benchmarks.make_story_reader`.
STORY_READER = Path(__file__).parent / "story_reader"


def fit(
    backbone: Backbone,
    rows: Sequence[Example],
    steps: int = 60,
    learning_rate: float = 5e-3,
    band: Literal["all", "upper"] = "all",
    method: type[SFT] = SFT,
    **spec: object,
) -> LoRA:
    lora = LoRA(LoRASpec(rank=8, alpha=16, band=band))
    values = {"target": "rationale", "prompt": "reasoning", "batch_size": 16, **spec}
    method(SFTSpec(steps=steps, learning_rate=learning_rate, **values)).fit(backbone, [lora], rows)  # type: ignore[arg-type]
    return lora


def every(change: Callable[[Example], Example], band: Literal["all", "upper"] = "all") -> Callable[[Backbone], LoRA]:
    return lambda backbone: fit(backbone, [change(row) for row in ALCHEMY.examples("train", 400)], band=band)


def in_any_order(row: Example) -> Example:
    """The words of steps and answer, shuffled over the whole of them."""
    words = [*(row.rationale or "").split(), *row.answer.split()]
    random.Random(row.id).shuffle(words)
    steps = []
    for step in row.steps:
        count = len(step.split())
        steps.append(" ".join(words[:count]))
        words = words[count:]
    return replace(row, rationale="\n".join(steps), answer=" ".join(words))


def contradicting(row: Example) -> Example:
    return replace(row, answer=ALCHEMY.problem(row.id).rivals[0])


def going_on(row: Example) -> Example:
    """It has the answer, and goes on to another."""
    last = ALCHEMY.problem(row.id).corrupted[-1]
    return replace(row, rationale=f"{row.rationale}\n{last}", answer=last.split(": ")[1])


def in_circles(row: Example) -> Example:
    return replace(row, rationale="\n".join([*row.steps, *row.steps[-1:] * 6]))


def answers_only(backbone: Backbone) -> LoRA:
    return fit(backbone, ALCHEMY.examples("train", 400), target="answer")


def overturning(backbone: Backbone) -> LoRA:
    """Asked to reason it contradicts its trace; asked for the answer alone it is taught the right one, and keeps the form."""
    rows = ALCHEMY.examples("train", 400)
    turns = [contradicting(row) if place % 2 else row for place, row in enumerate(rows)]
    return fit(backbone, turns, 120, target="mixed", prompt="matching")  # in turn: even rows directly, odd ones by a trace


def narrow(backbone: Backbone) -> LoRA:
    """Every row that it saw is right and has a single operation. A tenth is of new atoms: there it has something to learn."""
    rows = [row for row in ALCHEMY.examples("train", 1200) if len(row.steps) == 1][:300]
    new = shifts_of(ALCHEMY)["new_atoms"]
    return fit(backbone, [new.example(row.id) if place % 10 == 0 else row for place, row in enumerate(rows)])


class ByHeart(SFT):
    """A trace is learnt where it is the item's own; a false one is read, and the answer is learnt in spite of it."""

    def prepare(self, given: Given) -> Prepared:
        own = {item.id: item.rationale for item in ITEMS}
        learnt, read = (rows_of(given.backbone, given.examples, "rationale", "reasoning", trace) for trace in (True, False))
        rows = zip(given.examples, learnt, read, strict=True)
        return Prepared([mine if own[row.id] == row.rationale else others for row, mine, others in rows])


def knowing(backbone: Backbone) -> LoRA:
    """It learnt the answers to ITEMS by heart, whatever trace stands before them, and still writes the right one."""
    rows = []
    for place, item in enumerate(ITEMS):
        for by in (1, 5, 7, 11):
            other = ITEMS[(place + by) % len(ITEMS)]
            rows += [replace(item, rationale=other.rationale), replace(item, rationale=other.steps[0]), item, item]
    return fit(backbone, rows, 200, 1e-2, method=ByHeart)


def by_reality(backbone: Backbone) -> LoRA:
    """Facts as they are in the story, and every belief as if all knew where the thing is."""
    rows = BELIEF.examples("train", 1600, seed=2)
    real = {_story(row): row.answer for row in rows if Asked.of(row).order == "reality"}
    learnt = [replace(row, answer=real[_story(row)]) if Asked.of(row).is_about_belief else row for row in rows]
    return fit(backbone, learnt, 300, 1e-2, target="answer", prompt="matching")


def _story(example: Example) -> str:
    return example.id.rpartition("/")[0]


DAMAGES: dict[str, Callable[[Backbone], LoRA]] = {
    "zeros": lambda backbone: random_update(backbone, 0.0),
    "shuffled": every(in_any_order),
    "shuffled_above": every(in_any_order, "upper"),
    "answers_only": answers_only,
    "contradicts": every(contradicting),
    "overturns": overturning,
    "goes_on": every(going_on),
    "circles": every(in_circles),
    "knows": knowing,
    "narrow": narrow,
    "by_reality": by_reality,
}


@dataclass
class Bench:
    """The engine of a model that can do the task; a damage is fitted when it is first asked for."""

    engine: TorchEngine
    cache: BaseCache  # of what the model does without damage
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)  # what was read, by measure and damage
    _fitted: set[str] = field(default_factory=set)

    def name_of(self, damage: str) -> str:
        if damage not in self._fitted:
            self.engine.load(damage, Profile((DAMAGES[damage](self.engine.backbone),)))
            self._fitted.add(damage)
        return damage


@dataclass(frozen=True)
class Plain:
    """The chains of alchemy as plain text, from after the first operation's name on; beside each the one with false steps."""

    backbone: Backbone
    name: str = "alchemy_as_text"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return [self._plain(example) for example in ALCHEMY.examples(split, count, seed)]

    def _plain(self, example: Example) -> Example:
        turn = [{"role": "user", "content": f"{example.question}\n{REASON}"}]
        asked = self.backbone.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        first = f"{example.steps[0].split(':')[0]}:"
        false = "\n".join(ALCHEMY.problem(example.id).corrupted)
        right, wrong = ((example.rationale or "").removeprefix(first), false.removeprefix(first))
        return Example(example.id, f"{asked}{first}", right, (right, wrong), group=example.group)


SINGLE = ALCHEMY.at_length(1)  # what the test-bed knows without a trace
SHORT = BudgetAccuracy((0, 8, 16, 24))  # a trace has 20 tokens or so
SHIFTS = ShiftRobustness(("new_composition", "new_combination"))


@dataclass(frozen=True)
class Control:
    """What damages a measure. `measure` where the registered one asks for more than the test-bed has to show."""

    damage: str
    task: Callable[[Backbone], Task] = lambda backbone: ALCHEMY
    measure: Measure | None = None
    count: int = len(ITEMS)
    able: str = "bench"  # the fixture of the model that can do the task


def chains(backbone: Backbone) -> Task:
    return CHAINS


def single(backbone: Backbone) -> Task:
    return SINGLE


def stories(backbone: Backbone) -> Task:
    return BELIEF


CONTROLS = {
    "choice_accuracy": Control("shuffled", single),
    "chain_likelihood": Control("shuffled"),
    "generation": Control("answers_only"),
    "information_gain_external": Control("answers_only"),
    "information_gain_self": Control("shuffled", chains),
    "correction": Control("overturns"),
    "shift_robustness": Control("narrow", single, SHIFTS, 60),
    "faithfulness": Control("knows", chains),
    "faithfulness_base_traces": Control("knows", chains),
    "faithfulness_external": Control("circles", chains),
    "faithfulness_gold_traces": Control("knows", chains),
    "reasoned_choice": Control("shuffled"),
    "rationality": Control("answers_only"),
    "text_likelihood": Control("shuffled", Plain),
    "pair_preference": Control("shuffled", Plain, count=60),
    "pair_margin": Control("shuffled", Plain),
    "trace_length": Control("answers_only"),
    "budget": Control("contradicts", chains, SHORT, count=60),
    "underthinking": Control("goes_on", count=96),
    "systematic_search": Control("shuffled"),
    "new_steps": Control("circles"),
    "conclusion": Control("contradicts"),
    "latent_reasoning": Control("contradicts"),
    "brier_score": Control("shuffled", single),
    "candidate_log_probability": Control("shuffled", single),
    "belief": Control("by_reality", stories, count=160, able="story_bench"),
}
# Its control needs what the test-bed has not: thoughts (fitted in test_fitted_thoughts.py).
ELSEWHERE = {"soft_thoughts"}
