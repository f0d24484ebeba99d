"""Explanation rationality: each criterion falls where an explanation is made worse in its own way, and nowhere without cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from toy_reader import Reader

from adapters.backbone import REASONER, Backbone
from engine.engine import Engine
from evaluation.errors import DataError
from evaluation.measures.information_gain import swaps
from evaluation.measures.rationality import Rationality, likelihood_forms, rivals
from evaluation.rubric import EXPLANATION_RATIONALITY, load_rubric
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example, Trace, answer_line
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]
CRITERIA = ("acceptability", "relevance", "sufficiency", "consistency")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.at_length(3).examples("search", 24)


def gold(examples: Sequence[Example]) -> list[Trace]:
    return [Trace(example.steps, example.answer, ()) for example in examples]


def swapped(examples: Sequence[Example]) -> list[Trace]:
    partners = swaps([example.steps for example in examples], [example.answer for example in examples])
    return [Trace(examples[other].steps, example.answer, ()) for example, other in zip(examples, partners, strict=True)]


def without_the_last_step(examples: Sequence[Example]) -> list[Trace]:
    return [Trace(example.steps[:-1], example.answer, ()) for example in examples]


def contradicted(examples: Sequence[Example]) -> list[Trace]:
    return [Trace(example.steps, rivals(TASK, example, examples)[0], ()) for example in examples]


def with_idle_steps(examples: Sequence[Example]) -> list[Trace]:
    return [Trace((*example.steps[:1], "1 + 1 = 2", *example.steps[1:]), example.answer, ()) for example in examples]


def with_a_false_step(examples: Sequence[Example]) -> list[Trace]:
    return [Trace((TASK.problem(example.id).corrupted[0], *example.steps[1:]), example.answer, ()) for example in examples]


def change(engine: Engine, backbone: Backbone, examples: Sequence[Example], traces: Sequence[Trace], part: str) -> PairedChange:
    """From the gold traces to others, in one criterion."""
    before = likelihood_forms(engine, backbone, TASK, examples, gold(examples))
    after = likelihood_forms(engine, backbone, TASK, examples, traces)
    return paired_change([row[part] for row in before], [row[part] for row in after], [e.group for e in examples])


@pytest.fixture
def reader(backbone: Backbone, examples: list[Example]) -> Reader:
    chains = {example.question: example.chain for example in examples}
    wrong = {e.question: "\n".join((*e.steps, answer_line(rivals(TASK, e, examples)[0]))) for e in examples}
    return Reader(
        backbone,
        {
            None: chains,
            "contradicts": wrong,
            "foreign": {
                e.question: "\n".join((*t.steps, answer_line(e.answer))) for e, t in zip(examples, swapped(examples), strict=True)
            },
            "mute": {example.question: answer_line(example.answer) for example in examples},
            "endless": {example.question: example.rationale or "" for example in examples},
        },
    )


def test_another_items_trace_loses_relevance(reader: Reader, backbone: Backbone, examples: list[Example]) -> None:
    assert change(reader, backbone, examples, swapped(examples), "relevance").high < 0


def test_a_trace_without_its_decisive_step_loses_sufficiency(reader: Reader, backbone: Backbone, examples: list[Example]) -> None:
    assert change(reader, backbone, examples, without_the_last_step(examples), "sufficiency").high < 0


def test_an_answer_that_contradicts_its_trace_loses_consistency_and_nothing_else(
    reader: Reader, backbone: Backbone, examples: list[Example]
) -> None:
    assert change(reader, backbone, examples, contradicted(examples), "consistency").high < 0
    for part in ("acceptability", "relevance", "sufficiency"):
        assert not any(change(reader, backbone, examples, contradicted(examples), part).per_item)


def test_a_false_step_loses_acceptability(reader: Reader, backbone: Backbone, examples: list[Example]) -> None:
    assert change(reader, backbone, examples, with_a_false_step(examples), "acceptability").high < 0


def test_idle_steps_cost_relevance_but_not_sufficiency(reader: Reader, backbone: Backbone, examples: list[Example]) -> None:
    # Verbosity cannot win: what a step does not add is shared by more steps.
    assert change(reader, backbone, examples, with_idle_steps(examples), "relevance").high < 0
    assert not any(round(d, 9) for d in change(reader, backbone, examples, with_idle_steps(examples), "sufficiency").per_item)


def test_the_relevance_of_the_steps_adds_up_to_their_sufficiency(
    reader: Reader, backbone: Backbone, examples: list[Example]
) -> None:
    for row in likelihood_forms(reader, backbone, TASK, examples, gold(examples)):
        assert row["relevance"] * row["num_steps"] == pytest.approx(row["sufficiency"])


@pytest.mark.parametrize("name", ["contradicts", "foreign", "mute", "endless"])
def test_a_profile_that_explains_worse_loses(reader: Reader, backbone: Backbone, examples: list[Example], name: str) -> None:
    base, adapted = (Rationality().read(reader, backbone, profile, TASK, examples) for profile in (None, name))
    assert base.mean > 0.1 and paired_change(base.values, adapted.values, base.clusters).high < 0


@pytest.mark.parametrize("name", ["mute", "endless"])
def test_who_explains_nothing_supports_nothing_and_has_no_criteria(
    reader: Reader, backbone: Backbone, examples: list[Example], name: str
) -> None:
    found = Rationality().read(reader, backbone, name, TASK, examples)
    assert set(found.values) == set(found.parts["explained"]) == {0.0}
    assert all(math.isnan(value) for part in CRITERIA for value in found.parts[part])


def test_a_rival_is_a_wrong_answer_of_the_task_of_the_choices_or_of_another_item() -> None:
    one, two = (Example(id=name, question=name, answer=name) for name in ("one", "two"))
    three = replace(one, id="three")
    assert rivals(FAMILIES["boxes"].at_length(2), (box := FAMILIES["boxes"].examples("search", 1)[0]), [])
    assert box.answer not in rivals(FAMILIES["boxes"], box, [])
    assert rivals(Plain(), one, [one, two, three]) == ("two",)
    assert rivals(Plain(), replace(one, choices=("one", "four")), [one, two]) == ("four",)
    with pytest.raises(DataError, match="'plain' gave none for 'one'"):
        rivals(Plain(), one, [one, three])


class Plain:
    name = "plain"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        return []


def test_the_rubric_is_versioned_and_its_rule_never_falls_when_a_criterion_rises() -> None:
    rubric = load_rubric()
    assert f"{rubric.name}_{rubric.version}.toml" == EXPLANATION_RATIONALITY.name
    assert tuple(criterion.name for criterion in rubric.criteria) == CRITERIA
    assert {*rubric.overall.gates, *rubric.overall.support} == set(CRITERIA)
    low = {"acceptability": 0.2, "relevance": -0.4, "sufficiency": 0.3, "consistency": 0.5}
    for name in CRITERIA:
        for step in (0.1, 0.3, 0.5):
            assert rubric.combined({**low, name: low[name] + step}) >= rubric.combined(low)


@pytest.mark.slow
def test_the_reasoner_reads_every_control_as_the_worse_explanation(examples: list[Example]) -> None:
    from engine.torch_engine import TorchEngine

    backbone = Backbone.load(REASONER)
    engine = TorchEngine(backbone, max_rows=64)
    for worse, part in (
        (swapped, "relevance"),
        (without_the_last_step, "sufficiency"),
        (contradicted, "consistency"),
        (with_a_false_step, "acceptability"),
        (with_idle_steps, "relevance"),
    ):
        found = change(engine, backbone, examples, worse(examples), part)
        print(worse.__name__, part, found)
        assert found.high < 0, (worse.__name__, part, str(found))
