"""Information Gain: telescoping, leaks, swapped traces, and who reads what."""

from __future__ import annotations

import math

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from evaluation.measures.information_gain import InformationGain, TwoCauses, swaps
from evaluation.staircase import leaking_step
from evaluation.statistics import paired_change
from evaluation.task import Example
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]
SELF, EXTERNAL = InformationGain("self", "gold"), InformationGain("external", "own")


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 12)


def example(steps: str, answer: str, question: str = "What is the result?") -> Example:
    return Example(id="x", question=question, answer=answer, rationale=steps)


def test_the_gains_of_the_steps_add_up_to_the_total(backbone: Backbone, examples: list[Example]) -> None:
    parts = SELF.read(ToyEngine(backbone, examples), backbone, None, TASK, examples).parts
    for total, first, last, per_step, steps in zip(
        parts["total"], parts["l_0"], parts["l_t"], parts["per_step"], parts["num_steps"], strict=True
    ):
        assert total == pytest.approx(last - first) and total == pytest.approx(per_step * steps)


def test_a_reader_that_uses_the_steps_gains_from_them_and_not_from_swapped_ones(
    backbone: Backbone, examples: list[Example]
) -> None:
    found = SELF.read(ToyEngine(backbone, examples), backbone, None, TASK, examples)
    assert min(found.values) > 0.5 and found.values == found.parts["total"]
    assert found.parts["control"] == (0.0,) * len(examples)


def test_what_any_trace_would_give_is_taken_off(backbone: Backbone, examples: list[Example]) -> None:
    found = SELF.read(ToyEngine(backbone, examples, Mind(gullible=True)), backbone, None, TASK, examples)
    assert found.part_mean("total") > 0.5 and abs(found.mean) < 0.2 * found.part_mean("total")


def test_a_broken_reader_gains_nothing_from_being_a_little_less_broken(backbone: Backbone, examples: list[Example]) -> None:
    found = SELF.read(ToyEngine(backbone, examples, Mind(solves=False)), backbone, None, TASK, examples)
    assert set(found.values) == {0.0} and set(found.parts["l_0"]) == {-5.0}


def test_a_reader_that_ignores_the_steps_gains_nothing(backbone: Backbone, examples: list[Example]) -> None:
    found = SELF.read(ToyEngine(backbone, examples, Mind(reads_steps=False)), backbone, None, TASK, examples)
    assert set(found.values) == {0.0}


def test_the_gain_before_the_answer_is_stated_is_smaller_than_the_total(backbone: Backbone, examples: list[Example]) -> None:
    found = SELF.read(ToyEngine(backbone, examples), backbone, None, TASK, examples)
    assert found.part_mean("preleak") < found.part_mean("total")


def test_an_adapter_that_stops_using_given_steps_loses_by_its_own_reading(backbone: Backbone, examples: list[Example]) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("post-hoc", Mind(reads_steps=False))
    base, adapted = (SELF.read(engine, backbone, name, TASK, examples) for name in (None, "post-hoc"))
    assert paired_change(base.values, adapted.values, base.clusters).high < 0


def test_an_adapter_that_writes_fewer_steps_loses_by_the_backbones_reading(backbone: Backbone, examples: list[Example]) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("terse", Mind(writes_steps=1))
    base, adapted = (EXTERNAL.read(engine, backbone, name, TASK, examples) for name in (None, "terse"))
    assert set(adapted.parts["num_steps"]) == {1.0}
    assert paired_change(base.values, adapted.values, base.clusters).high < 0


def test_an_external_reader_reads_with_the_backbone(backbone: Backbone, examples: list[Example]) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("post-hoc", Mind(reads_steps=False))  # writes what the backbone writes
    base, adapted = (EXTERNAL.read(engine, backbone, name, TASK, examples) for name in (None, "post-hoc"))
    assert adapted == base


def test_a_profile_that_writes_no_steps_gains_exactly_nothing(backbone: Backbone, examples: list[Example]) -> None:
    found = EXTERNAL.read(ToyEngine(backbone, examples, Mind(writes_steps=0)), backbone, None, TASK, examples)
    assert set(found.values) == set(found.parts["per_step"]) == {0.0}


def test_gold_traces_read_by_the_backbone_would_see_no_adapter_and_are_refused() -> None:
    with pytest.raises(ValueError, match="traces='own'"):
        InformationGain("external", "gold")


def test_the_answer_leaks_at_the_first_step_that_states_it() -> None:
    found = example("7 + 5 = 12\n12 * 3 = 36\n36 - 8 = 28", "28")
    assert leaking_step(found.steps, found) == 2


def test_a_number_inside_another_number_is_no_leak() -> None:
    found = example("120 + 8 = 128", "28")
    assert leaking_step(found.steps, found) == 1


def test_naming_what_the_question_names_leaks_nothing_until_the_last_step() -> None:
    found = example("Swap A B: A coin, B key\nSwap A C: A shell, C coin", "coin", "The coin is in box B. What is in box C?")
    assert leaking_step(found.steps, found) == 1


def test_a_swapped_trace_is_anothers_of_like_length_without_this_answer() -> None:
    traces = [("1 + 1 = 2",), ("1 + 1 = 2", "2 + 2 = 4"), ("3 + 1 = 4", "4 + 5 = 9"), ("7 + 1 = 8",)]
    assert swaps(traces, ["2", "4", "9", "8"])[:2] == [3, 3]
    assert all(other != index for index, other in enumerate(swaps(traces, ["2"] * 4)))


def test_one_example_has_nothing_to_swap_with(backbone: Backbone, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="two or more"):
        SELF.read(ToyEngine(backbone, examples), backbone, None, TASK, examples[:1])


def test_a_step_has_a_gain_of_its_own_and_none_where_the_trace_has_ended(backbone: Backbone, examples: list[Example]) -> None:
    parts = SELF.read(ToyEngine(backbone, examples), backbone, None, TASK, examples).parts
    for index, example in enumerate(examples):
        gains = [parts[f"step_{number}"][index] for number in range(1, 5)]
        known = [gain for gain in gains if not math.isnan(gain)]
        assert len(known) == len(example.steps) and sum(known) == pytest.approx(parts["total"][index])


def test_the_verifier_accepts_every_step_of_a_mind_that_solves_and_none_of_one_that_does_not(
    backbone: Backbone, examples: list[Example]
) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("lost", Mind(solves=False))
    right, wrong = (EXTERNAL.read(engine, backbone, name, TASK, examples).parts["knowledge_index"] for name in (None, "lost"))
    assert set(right) == {1.0}
    assert not any(share > 0 for share in wrong)


def test_an_answer_that_is_known_without_steps_is_told_from_steps_that_lost_their_worth(
    backbone: Backbone, examples: list[Example]
) -> None:
    engine = ToyEngine(backbone, examples)
    engine.think("memorised", Mind(reads_steps=False))  # as sure before the first step as half of them would make it
    engine.think("hollow", Mind(certainty=0.3))
    base, memorised, hollow = (SELF.read(engine, backbone, name, TASK, examples) for name in (None, "memorised", "hollow"))
    known, lost, same = (TwoCauses.of(base, other) for other in (memorised, hollow, base))
    assert known.memorised and lost.hollowed and not lost.memorised
    assert not same.memorised and not same.hollowed and SELF.summary(base, base)["length_ratio"] == 1.0
