"""Shift robustness: a ratio of accuracies, paired, that a perfect reasoner keeps whole and a brittle one does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from idle_engine import IdleEngine
from scipy import stats

from adapters.backbone import Backbone
from engine.engine import Completion, GenerationRequest
from evaluation.evaluate import Planned, Row, compared, evaluate
from evaluation.measures.shift import ShiftRobustness, share_kept
from evaluation.shifts import shifts_of
from evaluation.statistics import paired_change
from evaluation.task import Example
from evaluation.tasks import FAMILIES, TASKS
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.generated import GeneratedTask

MEASURE = ShiftRobustness()
ALL_LOST = pytest.approx(1 - 2 * 0.025 ** (1 / 20))  # 20 of 20: the upper end, as Clopper and Pearson bound it
Knows = Callable[[str, int], bool]  # of a shift ("" is none) and the place of an item


class Scholar(IdleEngine):
    """Writes the gold chain of what a profile knows, and of all else a wrong answer."""

    def __init__(self, backbone: Backbone, task: GeneratedTask, examples: Sequence[Example], **knows: Knows) -> None:
        self.backbone, self.knows = backbone, knows
        tasks = {"": task, **shifts_of(task)}
        known = [(name, place, tasks[name].example(e.id)) for place, e in enumerate(examples) for name in tasks]
        # A twin with a distractor contains the original's question.
        self.known = sorted(known, key=lambda row: -len(row[2].question))

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def _complete(self, request: GenerationRequest) -> Completion:
        prompt = self.backbone.decode(request.prompt_ids)
        name, place, example = next(row for row in self.known if row[2].question in prompt)
        right = self.knows[request.profile or "base"](name, place)
        ids = self.backbone.encode(example.chain if right else "Answer: none")[: request.max_new_tokens]
        return Completion(self.backbone.decode(ids), tuple(ids), (0.0,) * len(ids), "stop", len(request.prompt_ids))


def measured(backbone: Backbone, task: GeneratedTask = ALCHEMY, measure: ShiftRobustness = MEASURE, **knows: Knows) -> Row:
    examples = task.examples("search", 20)
    engine = Scholar(backbone, task, examples, **knows)
    profile = "adapted" if "adapted" in knows else None
    return evaluate(engine, backbone, profile, [Planned(measure, task, examples, "report")]).rows[0]


@pytest.mark.parametrize("task", (*FAMILIES.values(), ALCHEMY), ids=lambda task: task.name)
def test_a_perfect_reasoner_is_right_on_every_twin(testbed: Backbone, task: GeneratedTask) -> None:
    # A cut at a wrong character, a perturbed problem that nobody can solve or too little room to write would show here.
    row = measured(testbed, task, base=lambda name, place: True)
    assert set(row.base.values) == {1.0} and {"original", *shifts_of(task)} <= set(row.base.parts)
    assert {value for part in row.base.parts.values() for value in part} == {1.0}


def test_an_adapter_that_memorised_the_distribution_loses_its_robustness(backbone: Backbone) -> None:
    row = measured(backbone, base=lambda name, place: True, adapted=lambda name, place: name in ("", "casing"))
    shifts = len(shifts_of(ALCHEMY))
    assert row.change.mean == pytest.approx(1 / shifts - 1) and row.change.high < 0
    assert (row.summary["casing_high"], row.summary["new_composition_high"]) == (0.0, ALL_LOST)


def test_an_adapter_that_is_worse_everywhere_alike_keeps_its_robustness(backbone: Backbone) -> None:
    row = measured(backbone, base=lambda name, place: True, adapted=lambda name, place: place % 5 < 3)
    assert row.adapted.part_mean("original") == 0.6
    assert row.change.mean == pytest.approx(0.0, abs=1e-12)


def test_the_change_is_that_of_the_ratios(backbone: Backbone) -> None:
    only = ShiftRobustness(("new_composition",))
    row = measured(
        backbone,
        measure=only,
        base=lambda name, place: place % 2 == 0 or not name,
        adapted=lambda name, place: place < (4 if name else 16),
    )
    assert only.name == "shift_robustness_new_composition"
    assert (row.base.mean, row.adapted.mean) == (pytest.approx(0.5), pytest.approx(4 / 16))
    assert row.change.mean == pytest.approx(4 / 16 - 0.5)
    assert row.summary["new_composition_low"] == pytest.approx(row.change.low)


def test_the_same_completions_change_nothing_at_all(backbone: Backbone) -> None:
    brittle: Knows = lambda name, place: (len(name) + place) % 3 != 1  # noqa: E731
    assert set(measured(backbone, base=brittle, adapted=brittle).change.per_item) == {0.0}


@pytest.mark.parametrize("worse", ["base", "adapted"])
def test_a_share_of_next_to_nothing_is_not_measurable(backbone: Backbone, worse: str) -> None:
    knows: dict[str, Knows] = {"base": lambda name, place: True, "adapted": lambda name, place: True}
    row = measured(backbone, **{**knows, worse: lambda name, place: place < 4})
    assert "is right on 20% of the problems of alchemy" in row.not_measurable
    assert math.isnan(row.change.mean) and not row.summary
    # What it did write is told all the same.
    assert row.as_dict()[f"{worse}_parts"]["original"] == 0.2


def test_a_quarter_is_enough(backbone: Backbone) -> None:
    assert not measured(backbone, base=lambda name, place: place < 5).not_measurable


def test_a_shift_that_the_backbone_fails_altogether_cannot_show_a_loss(backbone: Backbone) -> None:
    row = measured(backbone, base=lambda name, place: name in ("", "casing"), adapted=lambda name, place: not name)
    assert (row.summary["casing_high"], row.summary["order_high"], row.summary["order_base"]) == (ALL_LOST, None, 0.0)
    order = ShiftRobustness(("order", "spacing"))
    row = measured(backbone, measure=order, base=lambda name, place: not name, adapted=lambda name, place: not name)
    assert row.not_measurable == "the backbone is right on less than 10% of the twins under order, spacing: none to lose"


def test_a_shift_that_the_backbone_fails_does_not_thin_the_loss_under_the_others(backbone: Backbone) -> None:
    row = measured(backbone, base=lambda name, place: name in ("", "casing"), adapted=lambda name, place: not name)
    assert row.change.mean == -1.0 and row.base.mean == 1.0


def test_a_shift_that_the_adapter_alone_fails_counts_and_one_that_it_alone_can_do_does_not(backbone: Backbone) -> None:
    row = measured(
        backbone,
        base=lambda name, place: name in ("", "casing", "spacing"),
        adapted=lambda name, place: name in ("", "casing", "order"),
    )
    assert (row.base.mean, row.adapted.mean) == (1.0, 0.5)
    assert row.adapted.parts["_counted_order"] == row.base.parts["_counted_order"] == (0.0,) * 20


def test_two_adapters_are_compared_over_what_the_backbone_can_show(backbone: Backbone) -> None:
    # As knock-out does: between the adapter and a part of it, neither of which is the backbone.
    first = measured(backbone, base=lambda name, place: name in ("", "casing"), adapted=lambda name, place: name == "")
    second = measured(backbone, base=lambda name, place: True, adapted=lambda name, place: name in ("", "order"))
    row = compared(first.planned, first.adapted, second.adapted)
    assert (row.base.mean, row.adapted.mean, row.change.mean) == (0.0, 0.0, 0.0)


def test_a_task_without_twins_says_so(backbone: Backbone) -> None:
    examples = TASKS["icd10"].examples("search", 3)
    found = MEASURE.read(Scholar(backbone, ALCHEMY, []), backbone, None, TASKS["icd10"], examples)
    assert found.reason == "icd10 cannot be shifted by anything: only a generated task has a twin of every problem"


def test_a_shift_that_means_nothing_for_a_task_says_which_do(backbone: Backbone) -> None:
    task = FAMILIES["arithmetic"]
    found = ShiftRobustness(("order",)).read(
        Scholar(backbone, task, []),
        backbone,
        None,
        task,
        task.examples("search", 3),
    )
    assert found.reason.startswith("arithmetic cannot be shifted by order: it has steps_minus_1,")


def test_the_interval_is_that_of_a_difference_of_ratios() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(400)
    sides = [(easy < p_original, easy + 0.3 * rng.random(400) < p_twin) for p_original, p_twin in ((0.9, 0.7), (0.8, 0.5))]
    values = [np.asarray(part, dtype=float) for side in sides for part in side]

    def difference(*parts: np.ndarray) -> float:
        base, base_twin, adapted, adapted_twin = (part.mean() for part in parts)
        return float(adapted_twin / adapted - base_twin / base)

    expected = stats.bootstrap(values, difference, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=0)
    found = paired_change(share_kept(values[0], values[1]), share_kept(values[2], values[3]), [str(i) for i in range(400)])
    assert found.mean == pytest.approx(difference(*values))
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval, abs=0.005)
