"""The test-bed: the tiny model that is right, and that is right because of what it wrote before."""

from __future__ import annotations

import pytest
import torch
from alchemist import apply, read

from adapters.backbone import TESTBED, Backbone
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures.shift import ShiftRobustness
from evaluation.task import Example, direct_prompt, reasoning_prompt, same_answer, trace_of
from evaluation.tasks.alchemy import ALCHEMY

COUNT = 100


@pytest.fixture(scope="module")
def engine(testbed: Backbone) -> TorchEngine:
    engine = TorchEngine(testbed, max_rows=64)
    engine.load("noop", Profile((random_update(testbed, 0.0),)))
    engine.load("noise", Profile((random_update(testbed, 0.3),)))
    return engine


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return ALCHEMY.examples("gate", COUNT)


def written(engine: TorchEngine, prompts: list[str], begun: list[str] | None = None) -> list[str]:
    backbone, begun = engine.backbone, begun or [""] * len(prompts)
    asked = [
        GenerationRequest(backbone.chat_ids(prompt), temperature=0.0, begun_ids=tuple(backbone.encode(start)))
        for prompt, start in zip(prompts, begun, strict=True)
    ]
    return [start + done.text for start, done in zip(begun, engine.complete(asked), strict=True)]


def measured(engine: TorchEngine, profile: str, *shifts: str, count: int = COUNT) -> Row:
    planned = Planned(ShiftRobustness(shifts), ALCHEMY, ALCHEMY.examples("gate", count), "report")
    return evaluate(engine, engine.backbone, profile, [planned]).rows[0]


def test_it_is_right_in_every_step_in_distribution(engine: TorchEngine, examples: list[Example]) -> None:
    texts = written(engine, [reasoning_prompt(example) for example in examples])
    right = [ALCHEMY.check(example, text).all_right for example, text in zip(examples, texts, strict=True)]
    assert sum(right) >= 0.95 * COUNT


def test_it_knows_new_elements_of_known_atoms_and_no_longer_chains(engine: TorchEngine) -> None:
    shifts = ShiftRobustness(("new_combination", "new_composition", "steps_plus_2", "atoms_plus_1", "new_atoms"))
    read = shifts.read(engine, engine.backbone, None, ALCHEMY, ALCHEMY.examples("gate", COUNT))
    share = {name: read.part_mean(name) for name in read.parts}
    assert share["new_combination"] >= 0.95 > share["new_composition"] >= 0.8
    assert max(share[name] for name in ("steps_plus_2", "atoms_plus_1", "new_atoms")) <= 0.1


def test_it_computes_each_step_from_the_one_before(engine: TorchEngine, examples: list[Example]) -> None:
    # Its first step is made false for it: whoever computes goes on from there, whoever knows the answer does not.
    long = [example for example in examples if len(example.steps) > 1]
    wrong = [ALCHEMY.problem(example.id).corrupted[0] for example in long]
    texts = written(engine, [reasoning_prompt(example) for example in long], [f"{step}\n" for step in wrong])
    followed = 0
    for example, step, text in zip(long, wrong, texts, strict=True):
        expected = step.split(": ")[1].replace(" ", "")
        for operation in read(example.question)[1][1:]:
            expected = apply(operation, expected)
        followed += same_answer(trace_of(text).answer, " ".join(expected))
    assert followed >= 0.9 * len(long)


def test_without_its_trace_it_does_not_know_what_it_answers(engine: TorchEngine, examples: list[Example]) -> None:
    long = [example for example in examples if len(example.steps) == 3]
    texts = written(engine, [reasoning_prompt(example) for example in long], ["Answer:"] * len(long))
    assert sum(
        same_answer(trace_of(text).answer, example.answer) for example, text in zip(long, texts, strict=True)
    ) <= 0.1 * len(long)


def test_asked_for_the_answer_alone_it_gives_it_after_one_operation(engine: TorchEngine, examples: list[Example]) -> None:
    # Of more operations it writes the steps all the same.
    short = [example for example in examples if len(example.steps) == 1]
    texts = written(engine, [direct_prompt(example) for example in short])
    right = [
        text.startswith("Answer:") and same_answer(trace_of(text).answer, e.answer) for e, text in zip(short, texts, strict=True)
    ]
    assert sum(right) >= 0.9 * len(short)


def test_a_position_as_such_says_nothing(testbed: Backbone, examples: list[Example]) -> None:
    ids_BT = torch.tensor([[*testbed.chat_ids(reasoning_prompt(examples[0])), *testbed.encode(examples[0].chain)]])
    positions_BT = torch.arange(ids_BT.shape[1])[None]
    mask_BT = torch.ones_like(ids_BT)
    with torch.no_grad():
        here, there = (
            testbed.model(ids_BT, attention_mask=mask_BT, position_ids=positions_BT + start).logits for start in (0, 300)
        )
    assert torch.allclose(here, there, atol=1e-3)


def test_an_adapter_of_zeros_changes_nothing_on_any_shift(engine: TorchEngine) -> None:
    row = measured(engine, "noop", count=16)
    assert set(row.change.per_item) == {0.0} and row.base.parts == row.adapted.parts
    assert row.summary["new_composition_low"] == row.summary["new_composition_high"] == 0.0


def test_noise_in_the_weights_costs_robustness_before_it_costs_accuracy(engine: TorchEngine) -> None:
    row = measured(engine, "noise", "new_composition")
    assert row.adapted.part_mean("original") >= 0.9 and row.change.high < 0


def test_it_is_small_enough_to_be_carried() -> None:
    assert sum(file.stat().st_size for file in TESTBED.iterdir()) < 5e6
