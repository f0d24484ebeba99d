"""The items of a policy search: the select split, which neither fit nor sweep nor gate reads, in two halves.

One half chooses among the trials; the other, of other groups, tests the one that was chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.retention import is_written, search_measure
from evaluation.task import Example, Split, Task
from evaluation.tasks import task_named
from evaluation.tasks.generated import draws_groups
from evaluation.written_answer import WrittenAnswer
from tuning.decoding.settings import DecodingSearch
from tuning.errors import NoSelection
from tuning.plan import WRITTEN_MEASURE

SPLIT: Split = "select"
LEAST = 8  # items of a half


@dataclass(frozen=True)
class Halves:
    """Two plans of the same measures; the domain's comes first in both."""

    choosing: tuple[Planned, ...]
    confirming: tuple[Planned, ...]

    @property
    def domain_items(self) -> list[Example]:
        return [*self.choosing[0].examples, *self.confirming[0].examples]

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(planned.task.name for planned in self.choosing[1:]))


def halves(
    settings: DecodingSearch, domain: Task, protected: Sequence[str], without: Collection[str], with_likelihood: bool
) -> Halves:
    """`without` names families that are not measurable on the backbone.

    What is chosen by how it is written moves no likelihood, so that only a search of steering strengths reads those, too.
    """
    asked = WrittenAnswer(settings.max_new_tokens)
    found = [[Planned(asked, domain, examples, "domain")] for examples in split_in_two(domain, settings.items)]
    for task in (task for task in map(task_named, protected) if task.name not in without):
        measures = [MEASURES[WRITTEN_MEASURE]] if is_written(task) else []
        if with_likelihood and search_measure(task) not in measures:
            measures.append(search_measure(task))
        if measures:
            for side, examples in zip(found, split_in_two(task, settings.family_items), strict=True):
                side.extend(Planned(measure, task, examples, "protected") for measure in measures)
    return Halves(tuple(found[0]), tuple(found[1]))


def split_in_two(task: Task, count: int) -> tuple[list[Example], list[Example]]:
    """`count` items for each half, fewer where the split holds fewer; no group in both, where groups are drawn."""
    drawn = task.examples(SPLIT, 2 * count)
    whole = draws_groups(task, [example.group for example in drawn])
    order = {group: place for place, group in enumerate(dict.fromkeys(example.group for example in drawn))}
    sides: tuple[list[Example], list[Example]] = ([], [])
    for place, example in enumerate(drawn):
        sides[(order[example.group] if whole else place) % 2].append(example)
    if min(map(len, sides)) < LEAST:
        raise NoSelection(
            f"A policy is chosen on {LEAST} items of the {SPLIT} split and tested on {LEAST} others, but {task.name} has "
            f"{len(sides[0])} and {len(sides[1])} there. Add rows with other questions, or a finer group column."
        )
    return sides[0][:count], sides[1][:count]
