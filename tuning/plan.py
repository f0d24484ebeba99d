"""What a recipe measures and on which items: the search split for the sweep, fresh items for everything after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

from evaluation.evaluate import Planned
from evaluation.measures import MEASURES, OF_TEXT, measure_named
from evaluation.measures.choice import listing
from evaluation.retention import DEFAULT_MARGINS, gate_measure, is_written, search_measure
from evaluation.task import Example, Split, Task
from evaluation.tasks import task_named
from tuning.recipe import Recipe

DOMAIN_MEASURE, WRITTEN_MEASURE = "choice_accuracy", "generation"
# What `graftline evaluate` reads of a reasoning family unless it is told otherwise; what is left out costs many forwards an item.
READ_ALSO = ("chain_likelihood", "information_gain_external", "information_gain_self", "correction", DOMAIN_MEASURE)


def training_examples(recipe: Recipe, domain: Task) -> list[Example]:
    """The method's rows, each with as many choices in its prompt as the method wants there."""
    count, examples = recipe.method.listed_choices, as_asked(recipe, domain)
    return [listing(domain, example, count) for example in examples] if count else examples


def as_asked(recipe: Recipe, domain: Task) -> list[Example]:
    """The same rows as the domain asks them, whatever the method lists: what adapters are compared on is read of these."""
    return domain.examples("train", recipe.method.num_examples, seed=recipe.method.seed)


def likelihood_plan(recipe: Recipe, domain: Task, split: Split = "search", without: Collection[str] = ()) -> list[Planned]:
    """The domain's accuracy, and every protected family by its likelihood (or preference, where nothing is written).

    `without` names the families that are not measurable on the backbone.
    """
    sizes = recipe.evaluation
    planned = [Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples(split, sizes.domain_items), "domain")]
    for task in _protected(recipe, without):
        planned.append(Planned(search_measure(task), task, task.examples(split, sizes.chain_items), "protected"))
    return planned


def generated_plan(recipe: Recipe, split: Split = "search", without: Collection[str] = ()) -> list[Planned]:
    """Every protected family that is written, greedily, and checked step by step."""
    count = recipe.evaluation.generated_items
    tasks = [task for task in _protected(recipe, without) if count and is_written(task)]
    return [Planned(MEASURES[WRITTEN_MEASURE], task, task.examples(split, count, seed=1), "protected") for task in tasks]


def _protected(recipe: Recipe, without: Collection[str]) -> list[Task]:
    return [task for task in map(task_named, recipe.protected) if task.name not in without]


def margins_of(recipe: Recipe, plan: Sequence[Planned]) -> dict[str, float]:
    """The tolerable loss of every protected family in the plan: the recipe's, else the default of its measure's unit."""
    given = recipe.evaluation.margins
    return {
        planned.task.name: given.get(planned.task.name, DEFAULT_MARGINS[planned.measure.unit])
        for planned in plan
        if planned.role == "protected"
    }


def data_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the rows in order."""
    digest = hashlib.sha256()
    for example in examples:
        asked = (example.id, example.question, example.choices, example.listed, example.context)
        digest.update(json.dumps((*asked, example.answer, example.rationale)).encode())
    return digest.hexdigest()


def knockout_plan(domain: Task, families: Sequence[Task], items: int, split: Split = "select") -> list[Planned]:
    """For `graftline knockout`: by likelihood, since it is read again for every group of layers."""
    planned = [Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples(split, items), "domain")]
    planned.extend(Planned(search_measure(task), task, task.examples(split, items), "protected") for task in families)
    return planned


def report_plan(
    domain: Task, families: Sequence[Task], items: int, also: Sequence[str] = READ_ALSO, split: Split = "select"
) -> list[Planned]:
    """What `graftline evaluate` reads, on items of the select split, which neither sweep nor gate reads.

    The domain's accuracy, the measure that the gate guards each family by, and `also`, names of MEASURES, on all that is solved:
    passages, minimal pairs and stories have measures of their own.
    """
    planned = [
        Planned(MEASURES[DOMAIN_MEASURE], domain, domain.examples(split, items), "domain"),
        Planned(MEASURES[WRITTEN_MEASURE], domain, domain.examples(split, items), "report"),
    ]
    planned.extend(Planned(gate_measure(task), task, task.examples(split, items), "protected") for task in families)
    for first in (planned[0], *planned[2:]):
        others = (search_measure(first.task).name,) if first.measure.name in OF_TEXT else also
        read = {p.measure.name for p in planned if p.task is first.task}
        chosen = [measure_named(name) for name in dict.fromkeys(others) if name not in read]
        planned.extend(Planned(measure, first.task, first.examples, "report") for measure in chosen)
    return planned
