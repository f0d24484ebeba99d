"""Soft thoughts that were really fitted: to a reader that hears the answer from them alone, and to one that needs none.

The reader is a LoRA that learnt to say what its thoughts spell, on questions whose answer is drawn at random: nothing else tells
it. A SoftCoT is then fitted to think the right thing of each question for it, which is in what wording the question is asked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from damaged import CHAINS, ITEMS

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from adapters.edited_thoughts import EditedThoughts
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.measure import Readings
from evaluation.measures.soft_thoughts import SoftThoughts
from evaluation.task import Example, Split, reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY
from tuning.methods.sft import SFT, SFTSpec

MEASURE = SoftThoughts()
ANSWERS = ("A", "M", "Z")  # by wording
SPEC = SoftCoTSpec(num_thoughts=3, assistant_layers=2, gate=0.5)


@dataclass(frozen=True)
class Wordings:
    """Asks in what wording it asks."""

    name: str = "wordings"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return [
            replace(
                example,
                answer=ANSWERS[int(example.id.rpartition("/")[2])],
                choices=ANSWERS,
                listed=False,
                rationale=None,
                group=example.id,
            )
            for example in ALCHEMY.examples(split, count, seed)
        ]


TASK = Wordings()
ASKED = TASK.examples("gate", 24)


def learn(backbone: Backbone, adapters: list[LoRA | SoftCoT | EditedThoughts], rows: list[Example], **spec: object) -> None:
    values = {"target": "answer", "prompt": "reasoning", "batch_size": 16, **spec}
    SFT(SFTSpec(**values)).fit(backbone, adapters, rows)  # type: ignore[arg-type]


def reader(backbone: Backbone) -> LoRA:
    """Says what its thoughts spell: the answer's embedding, with some noise."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    rows = [replace(row, answer=rng.choice(ANSWERS)) for row in TASK.examples("train", 300)]
    instead = {}
    for row in rows:
        ids = backbone.chat_ids(reasoning_prompt(row))
        prompt = SoftCoT(SPEC).transform(backbone, Prompt(ids))
        spelt_H = backbone.embeddings.weight[backbone.encode(row.answer)[0]].detach()
        noise_KH = torch.randn((SPEC.num_thoughts, len(spelt_H)), generator=generator)
        instead[ids] = replace(prompt, soft_KH=spelt_H + 0.3 * spelt_H.std() * noise_KH)
    lora = LoRA(LoRASpec(rank=8, alpha=16))
    learn(backbone, [EditedThoughts(instead), lora], rows, steps=100, learning_rate=5e-3)
    return lora


def thinker(backbone: Backbone, lora: LoRA, static: bool = False) -> SoftCoT:
    softcot = SoftCoT(SPEC.model_copy(update={"static": static}))
    with lora.attach(backbone):  # it reads, and learns nothing more
        learn(backbone, [softcot], TASK.examples("train", 60), steps=120, learning_rate=1e-2)
    return softcot


@pytest.fixture(scope="module")
def engine(testbed: Backbone) -> Iterator[TorchEngine]:
    engine, lora = TorchEngine(testbed, max_rows=64), reader(testbed)
    engine.load("thinks", Profile((thinker(testbed, lora), lora)))
    engine.load("static", Profile((thinker(testbed, lora, static=True), lora)))
    needless = SoftCoT(SPEC)
    learn(testbed, [needless], ALCHEMY.examples("train", 300), steps=60, learning_rate=1e-2, target="rationale")
    engine.load("needless", Profile((needless,)))
    yield engine
    engine.close()


def read(engine: TorchEngine, profile: str) -> Readings:
    return MEASURE.read(engine, engine.backbone, profile, TASK, ASKED)


def test_who_hears_the_answer_from_its_thoughts_depends_on_them(engine: TorchEngine) -> None:
    found = read(engine, "thinks")
    told = MEASURE.summary(found, found)
    assert not found.reason and found.part_mean("right") > 0.8
    assert told["low"] > 0.3  # type: ignore[operator]
    assert min(told[f"{change}_low"] for change in ("early", "mean", "swapped")) > 0  # type: ignore[type-var]


def test_static_thoughts_cannot_tell_the_wording_and_are_at_chance(engine: TorchEngine) -> None:
    found = read(engine, "static")
    assert "not above chance" in found.reason and all(map(math.isnan, found.values))


def test_who_computes_without_its_thoughts_does_not_depend_on_them(engine: TorchEngine) -> None:
    found = MEASURE.read(engine, engine.backbone, "needless", CHAINS, ITEMS)
    told = MEASURE.summary(found, found)
    assert not found.reason and found.part_mean("right") > 0.9
    assert abs(found.mean) < 0.1 and told["low"] <= 0 <= told["high"]  # type: ignore[operator]
