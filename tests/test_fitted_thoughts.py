"""Soft thoughts that were really fitted, under a reader that hears the answer from them alone and under one that knows it.

Answers are drawn at random, so that nothing in a question tells its own. A LoRA learns to say what its thoughts spell; a SoftCoT
learns to spell the answers of ITEMS to it, while it is shown the question of any item, so that the thoughts alone can tell it.
Damaged, the same LoRA learns these answers by heart, whatever its thoughts are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from adapters.adapter import Adapter, Prompt
from adapters.backbone import Backbone
from adapters.edited_thoughts import EditedThoughts
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.evaluate import Planned, Row, compared, evaluate
from evaluation.measures import MEASURES
from evaluation.measures.soft_thoughts import cut
from evaluation.task import Example, Split, reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY
from tuning.methods.sft import SFT, SFTSpec

ANSWERS = ("A", "M", "Z")


@dataclass(frozen=True)
class Drawn:
    """The questions of alchemy, each with an answer that was drawn for it."""

    name: str = "drawn"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return [self._drawn(example) for example in ALCHEMY.examples(split, count, seed)]

    def _drawn(self, example: Example) -> Example:
        answer = random.Random(example.id).choice(ANSWERS)
        return replace(example, answer=answer, choices=ANSWERS, listed=False, rationale=None, group=example.id)


TASK = Drawn()
ITEMS = TASK.examples("gate", 24)
PLANNED = Planned(MEASURES["soft_thoughts"], TASK, ITEMS, "report")


@dataclass(frozen=True)
class AnyQuestion(EditedThoughts):
    """To fit under: an item's own thoughts, each time at the question of any."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        return replace(self.rng.choice(list(self.instead.values())), soft_KH=prompt.soft_KH)


@dataclass(frozen=True)
class AnyThoughts(EditedThoughts):
    """To fit under: an item's own question, each time with the thoughts of any, cut anywhere."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        thoughts = self.rng.choice(list(self.instead.values())).soft_KH
        assert thoughts is not None
        return cut(replace(self.instead[prompt.ids], soft_KH=thoughts), self.rng.randint(0, len(thoughts)))


def learn(backbone: Backbone, adapters: Sequence[Adapter], rows: Sequence[Example], steps: int, learning_rate: float) -> None:
    spec = SFTSpec(target="answer", prompt="reasoning", batch_size=len(ITEMS), steps=steps, learning_rate=learning_rate)
    SFT(spec).fit(backbone, adapters, rows)


def listener(backbone: Backbone, softcot: SoftCoT) -> LoRA:
    """Says what its thoughts spell: the answer's embedding, with some noise."""
    generator, rows, spelt = torch.Generator().manual_seed(0), TASK.examples("train", 200), {}
    for row in rows:
        ids = backbone.chat_ids(reasoning_prompt(row))
        prompt = softcot.transform(backbone, Prompt(ids))
        assert prompt.soft_KH is not None
        answer_H = backbone.embeddings.weight[backbone.encode(f" {row.answer}")[0]]
        noise_KH = torch.randn(prompt.soft_KH.shape, generator=generator)
        spelt[ids] = replace(prompt, soft_KH=answer_H + 0.3 * answer_H.std() * noise_KH)
    lora = LoRA(LoRASpec(rank=8, alpha=16))
    learn(backbone, [EditedThoughts(spelt), lora], rows, 25, 5e-3)
    return lora


def read_with(backbone: Backbone, softcot: SoftCoT) -> dict[tuple[int, ...], Prompt]:
    """ITEMS as they are read with their thoughts of now."""
    asked = [backbone.chat_ids(reasoning_prompt(item)) for item in ITEMS]
    return {ids: softcot.transform(backbone, Prompt(ids)) for ids in asked}


def teach(backbone: Backbone, softcot: SoftCoT, lora: LoRA) -> None:
    """The thoughts learn to spell the answers to a LoRA that listens, and learns nothing more."""
    with lora.attach(backbone):
        learn(backbone, [softcot, AnyQuestion(read_with(backbone, softcot))], ITEMS, 120, 4e-2)


def knowing(backbone: Backbone, softcot: SoftCoT, lora: LoRA) -> LoRA:
    """The listener, once it has learnt by heart what it used to be told."""
    knows = lora.scaled(1.0)
    learn(backbone, [AnyThoughts(read_with(backbone, softcot)), knows], ITEMS, 50, 5e-3)
    return knows


@pytest.fixture(scope="module")
def engine(testbed: Backbone, backbone_directory: Path) -> Iterator[TorchEngine]:
    # The test-bed's own states of two questions differ by 2 % of their length; those of a random model by half of it.
    softcot = SoftCoT(SoftCoTSpec(num_thoughts=3, assistant=str(backbone_directory), gate=1.0))
    lora = listener(testbed, softcot)
    teach(testbed, softcot, lora)
    engine = TorchEngine(testbed, max_rows=64)
    engine.load("listens", Profile((softcot, lora)))
    engine.load("zeros", Profile((softcot, lora, random_update(testbed, 0.0))))
    engine.load("knows", Profile((softcot, knowing(testbed, softcot, lora))))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def rows(engine: TorchEngine) -> dict[str, Row]:
    """By profile, each beside the backbone."""
    return {name: evaluate(engine, engine.backbone, name, [PLANNED]).rows[0] for name in engine.loaded}


def test_who_hears_the_answer_from_its_thoughts_depends_on_their_being_there_and_on_what_they_say(rows: dict[str, Row]) -> None:
    told = rows["listens"].summary
    assert rows["listens"].adapted.part_mean("right") > 0.9  # it was learnt
    assert min(told[low] for low in ("low", "early_low", "mean_low", "swapped_low")) > 0  # type: ignore[type-var]


def test_who_learnt_the_answers_by_heart_depends_on_no_thought_and_is_as_right(rows: dict[str, Row]) -> None:
    told = rows["knows"].summary
    assert told["low"] <= 0 and abs(told["dependence"]) < 0.1  # type: ignore[operator, arg-type]
    assert rows["knows"].adapted.part_mean("right") >= rows["listens"].adapted.part_mean("right")


def test_learning_by_heart_what_the_thoughts_told_is_flagged_with_its_interval_clear_of_zero(rows: dict[str, Row]) -> None:
    lost = compared(PLANNED, rows["listens"].adapted, rows["knows"].adapted)
    assert not lost.not_measurable and lost.change.high < 0


def test_a_lora_of_zeros_beside_the_thoughts_changes_no_item(rows: dict[str, Row]) -> None:
    same = compared(PLANNED, rows["listens"].adapted, rows["zeros"].adapted)
    assert not same.not_measurable and set(same.change.per_item) == {0.0}
    assert repr(same.base.parts) == repr(same.adapted.parts)
