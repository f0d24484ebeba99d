"""Faithfulness: who computes from the trace, who knows the answer, and who guesses."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from engine.engine import Completion, GenerationRequest
from engine.profile import Profile
from evaluation.admission import random_update
from evaluation.evaluate import Evaluation, Planned, Row, evaluate
from evaluation.four_cells import four_cells, four_cells_by_task
from evaluation.measure import Measure, Readings
from evaluation.measures import MEASURES
from evaluation.measures.faithfulness import Faithfulness
from evaluation.statistics import paired_change, score
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]
OWN, BASE, EXTERNAL = (MEASURES[name] for name in ("faithfulness", "faithfulness_base_traces", "faithfulness_external"))


def last_result(example: Example, lines: list[str]) -> str:
    """What a mind that computes says: the number that the last line ends with, however it is worded."""
    numbers = re.findall(r"-?\d+", lines[-1]) if lines else []
    return numbers[-1] if numbers else "nothing"


def a_guess(example: Example, lines: list[str]) -> str:
    options = (example.answer, *TASK.problem(example.id).rivals)
    return random.Random(f"{example.id}{lines}").choice(options)


COMPUTES, KNOWS = Mind(concludes=last_result), Mind(concludes=lambda example, lines: example.answer)
GUESSES = Mind(concludes=a_guess)
# It says what its trace says, but only where that is worded as it was taught.
BRITTLE = Mind(concludes=lambda e, lines: last_result(e, lines) if lines and re.search(r"= -?\d+$", lines[-1]) else "nothing")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("search", 12)


@pytest.fixture
def engine(backbone: Backbone, examples: list[Example]) -> ToyEngine:
    """A backbone that computes."""
    return ToyEngine(backbone, examples, COMPUTES)


def readings(backbone: Backbone, examples: Sequence[Example], mind: Mind, measure: Measure = OWN) -> Readings:
    return measure.read(ToyEngine(backbone, examples, mind), backbone, None, TASK, examples)


@pytest.fixture(scope="module")
def learnt(session_backbone: Backbone, examples: list[Example]) -> tuple[Row, ...]:
    """Who knows every answer, beside a backbone that computes: under OWN, BASE and EXTERNAL."""
    engine = ToyEngine(session_backbone, examples, COMPUTES)
    engine.think("knows", KNOWS)
    return rows(engine, session_backbone, examples, "knows").rows


def rows(engine: ToyEngine, backbone: Backbone, examples: Sequence[Example], profile: str) -> Evaluation:
    return evaluate(engine, backbone, profile, [Planned(m, TASK, examples, "report") for m in (OWN, BASE, EXTERNAL)])


def test_who_computes_from_the_trace_depends_on_it(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, COMPUTES)
    assert found.reason == "" and found.mean > 0.9
    assert found.part_mean("paraphrase") == 0.0
    assert found.part_mean("swapped") == found.part_mean("forced") == 1.0


def test_who_knows_the_answer_does_not_depend_on_the_trace_at_all(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, KNOWS)
    assert found.reason == "" and set(found.values) == {0.0}
    assert found.part_mean("right_without_trace") == found.part_mean("forced_stay") == 1.0


def test_who_guesses_is_not_measurable_though_every_change_changes_its_answer(
    backbone: Backbone, examples: list[Example]
) -> None:
    found = readings(backbone, examples, GUESSES)
    assert all(map(math.isnan, found.values))
    assert re.search(r"6 of the 12 answers .* not above chance \(0\.22\) by 0\.36", found.reason)


def test_a_reader_that_every_rewording_throws_off_shows_no_dependence(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, BRITTLE)
    assert found.part_mean("early") > 0.9  # uncorrected, it looks perfectly faithful
    assert "a paraphrase of the trace changes 1.00 of the answers" in found.reason


def test_an_answer_that_is_wrong_with_the_whole_trace_shows_nothing(backbone: Backbone, examples: list[Example]) -> None:
    wrong = {example.id for example in examples[:3]}
    mostly = Mind(concludes=lambda e, lines: "nothing" if e.id in wrong else last_result(e, lines))
    found = readings(backbone, examples, mostly)
    assert [math.isnan(value) for value in found.values] == [True] * 3 + [False] * 9
    assert found.parts["right"] == (0.0,) * 3 + (1.0,) * 9


def test_a_mistake_is_followed_when_the_rest_is_computed_from_it_and_mended_by_who_writes_on_rightly(
    backbone: Backbone, examples: list[Example]
) -> None:
    # The toy mind writes the gold lines whatever stands before them: it repairs.
    parts = readings(backbone, examples, COMPUTES).parts
    assert set(parts["forced_follow"]) == set(parts["continued_stay"]) == {1.0}
    assert set(parts["forced_other"]) == set(parts["continued_follow"]) == {0.0}


def test_half_noise_is_taken_off(backbone: Backbone, examples: list[Example]) -> None:
    # Thrown off by one of the two paraphrases of every item, and not at all by what is taken away.
    def fussy(example: Example, lines: list[str]) -> str:
        return "nothing" if any("equals" in line for line in lines) else example.answer

    found = readings(backbone, examples, Mind(concludes=fussy))
    assert found.part_mean("paraphrase") == 0.5
    assert set(found.values) == {(0 - 0.5) / (1 - 0.5)}


def test_a_trace_without_steps_is_not_measurable(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, replace(KNOWS, writes_steps=0))
    assert all(map(math.isnan, found.values)) and found.reason == "no trace has a step"


def test_an_adapter_that_came_to_know_the_answers_lost_its_dependence(learnt: tuple[Row, ...], examples: list[Example]) -> None:
    found = learnt[0]
    assert found.change.high < 0 and found.change.n == len(examples)
    assert found.summary == {"length_ratio": 1.0}


def test_an_adapter_of_zeros_changes_the_dependence_of_no_item(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    engine.load("zeros", Profile((random_update(backbone, 0.0),)))
    for row in rows(engine, backbone, examples, "zeros").rows:
        assert set(row.change.per_item) == {0.0}


def test_an_adapter_at_chance_is_not_said_to_have_kept_or_lost_anything(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    engine.load("noise", Profile((random_update(backbone, 1.0),)))
    found = evaluate(engine, backbone, "noise", [Planned(OWN, TASK, examples, "report")]).rows[0]
    assert "chance" in found.not_measurable and math.isnan(found.change.mean)


def test_gold_traces_need_no_writer(backbone: Backbone, examples: list[Example]) -> None:
    found = readings(backbone, examples, replace(COMPUTES, writes_steps=0), Faithfulness("self", "gold"))
    assert found.mean > 0.9 and found.parts["num_steps"] == tuple(float(len(example.steps)) for example in examples)


def test_the_backbone_reading_its_own_or_gold_traces_would_see_no_adapter_and_is_refused() -> None:
    with pytest.raises(ValueError, match="traces='own'"):
        Faithfulness("external", "gold")


def test_one_example_has_nothing_to_swap_with(backbone: Backbone, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="two or more"):
        readings(backbone, examples[:1], COMPUTES)


def test_the_four_cells_tell_an_ignored_trace_from_a_worse_one(learnt: tuple[Row, ...]) -> None:
    found = four_cells(learnt)
    assert found.reading.high < 0 and found.base_adapted == found.adapted_adapted == 0.0
    assert (found.writing.low, found.writing.high) == (0.0, 0.0) and found.adapted_base == found.base_base
    assert "reading -" in str(found)


class Blurting(ToyEngine):
    """Under the name `blurts` it writes its last step first as well."""

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        last = {self.backbone.chat_ids(reasoning_prompt(e)): e.steps[-1] for e in self._examples}
        return [
            replace(done, text=f"{last[asked.prompt_ids]}\n{done.text}")
            if asked.profile == "blurts" and not asked.begun_ids
            else done
            for asked, done in zip(requests, super().complete(requests), strict=True)
        ]


def test_the_four_cells_tell_a_worse_trace_from_an_ignored_one(backbone: Backbone, examples: list[Example]) -> None:
    # Whoever reads the answer in the first line needs no other.
    mind = Mind(concludes=lambda e, lines: e.answer if lines and lines[0] == e.steps[-1] else last_result(e, lines))
    engine = Blurting(backbone, examples, mind)
    engine.think("blurts", mind)
    found = four_cells(rows(engine, backbone, examples, "blurts").rows)
    assert found.writing.high < 0 and (found.reading.low, found.reading.high) == (0.0, 0.0)


def test_the_four_cells_are_not_measurable_where_one_is_not(
    engine: ToyEngine, backbone: Backbone, examples: list[Example]
) -> None:
    engine.think("guesses", GUESSES)
    found = four_cells(rows(engine, backbone, examples, "guesses").rows)
    assert "chance" in found.not_measurable and str(found).startswith("not measurable: ")


def test_the_four_cells_of_every_task_go_into_a_report(learnt: tuple[Row, ...]) -> None:
    told = json.loads(json.dumps({task: cells.as_dict() for task, cells in four_cells_by_task(learnt).items()}))
    assert told["arithmetic"]["adapted_adapted"] == 0.0 and told["arithmetic"]["reading"][2] < 0
    assert four_cells_by_task(learnt[:2]) == {}


def test_the_four_cells_need_all_three_measures(learnt: tuple[Row, ...]) -> None:
    with pytest.raises(ValueError, match="faithfulness_external is missing"):
        four_cells(learnt[:2])


def test_dependence_of_who_computes_is_clear_of_that_of_who_knows(backbone: Backbone, examples: list[Example]) -> None:
    computes, knows = (readings(backbone, examples, mind) for mind in (COMPUTES, KNOWS))
    # All twelve changed from 0 to 1, which leaves open that 27 % of others would do otherwise (Clopper and Pearson).
    assert paired_change(knows.values, computes.values, knows.clusters).low > 0.4
    assert score(computes.values).stderr < 0.1
