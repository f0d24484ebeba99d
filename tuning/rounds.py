"""The rounds of a gate: which items each one holds, and what was read of the one that is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from evaluation.evaluate import Planned
from evaluation.measures.generation import Generation
from evaluation.overlap import Fingerprints, check_overlap, row_hash
from evaluation.task import Example, Task
from evaluation.tasks.generated import GeneratedTask
from evaluation.tasks.grammar import GrammarTask
from evaluation.tasks.graph_task import GraphTask
from registry.evidence import Evidence, Start
from registry.gate_statistics import PairedItems

PER_GROUP = 3  # items of the domain's groups (a category, a passage) that one unit of evidence is the mean of
POOL_ROUNDS, LEAST_POOL = 10, 1000  # how many items of a finite task are cut into rounds: this many rounds, or this many items
LEAST_WRITTEN = 192  # items that are written together: three of the engine's batches, so that few end half empty


class Rounds:
    """A task's items of the gate split in rounds of about `size`, none of which is ever read twice.

    Which round holds which items follows from the task, the size and the seed alone: whatever the budget is, and however
    often the gate goes on, what was staked on is not read again. A task that is drawn without end is drawn anew for every
    round; any other is drawn once and cut into rounds by whole groups. Overlap when an item repeats a training row; of problems
    that are generated afresh, whose wordings are alike anyhow, one that is a training row to the letter is left out.
    """

    def __init__(self, task: Task, size: int, seed: int, training: Fingerprints) -> None:
        self.task, self._size, self._seed, self._training = task, size, seed, training
        self._drawn: list[list[Example]] = []
        self._asked: set[str] = set()
        if not is_endless(task):
            self._drawn = whole_groups(task.examples("gate", max(POOL_ROUNDS * size, LEAST_POOL), seed=seed), size)
            check_overlap(training, [example for items in self._drawn for example in items])

    def items(self, number: int) -> list[Example]:
        while is_endless(self.task) and number >= len(self._drawn):
            self._drawn.append(self._fresh(len(self._drawn)))
        return self._drawn[number] if number < len(self._drawn) else []

    def _fresh(self, number: int) -> list[Example]:
        # Seeds of rounds lie far apart, and a question that came before is left out.
        drawn = self.task.examples("gate", self._size, seed=self._seed + 1_000_003 * number)
        examples = [example for example in drawn if example.question not in self._asked]
        self._asked.update(example.question for example in examples)
        if isinstance(self.task, GeneratedTask):
            return [example for example in examples if row_hash(example) not in self._training.rows]
        check_overlap(self._training, examples)
        return examples


def is_endless(task: Task) -> bool:
    """Whether a generator draws the items, from the same wordings or words in every round: then each item is a unit."""
    return isinstance(task, GeneratedTask | GrammarTask) and not isinstance(task, GraphTask)


def whole_groups(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Rounds of about `size` items in which no group recurs, with at most PER_GROUP items of each.

    A group's mean is one unit of evidence, and what was staked on it must not change when a later round is drawn.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    rounds: list[list[Example]] = [[]]
    for members in groups.values():
        if len(rounds[-1]) >= size:
            rounds.append([])
        rounds[-1].extend(members[:PER_GROUP])
    return rounds


def parts_of(plan: Sequence[Planned]) -> list[list[Planned]]:
    """What is read at once: each measure alone, and what is written in batches of several families."""
    parts: list[list[Planned]] = []
    shared: list[Planned] = []
    for planned in plan:
        if not isinstance(planned.measure, Generation):
            parts.append([planned])
            continue
        shared.append(planned)
        if sum(len(one.examples) for one in shared) >= LEAST_WRITTEN:
            parts.append(shared)
            shared = []
    return [*parts, shared] if shared else parts


def name_of(planned: Planned) -> str:
    """What the gate calls the test: the task's name, or its own where the domain's written answers are asked for beside it."""
    return f"{planned.task.name}, written" if planned.role == "written" else planned.task.name


Read = Callable[[Sequence[Planned], Callable[[float], None]], Mapping[str, PairedItems]]
"""Some planned measures, and who is told the share of them that is done, to paired items by test."""


@dataclass(frozen=True)
class Reading:
    """Reads rounds part by part, and keeps each part: a gate that is killed reads no item again of a part that was whole.

    `kept`: the file of the gate's whole rounds, beside which the parts lie; None keeps none. `on_share` is told the share of the
    round that is done.
    """

    start: Start
    read: Read
    kept: Path | None
    on_share: Callable[[float], None]

    def round(self, number: int, plan: Sequence[Planned]) -> Mapping[str, PairedItems]:
        opened = self._opened(number)
        parts = parts_of(plan)
        for place, part in enumerate(parts):
            fresh = [planned for planned in part if name_of(planned) not in opened.items]
            if fresh:
                read = self.read(fresh, partial(self._told, place, len(parts)))
                opened = replace(opened, items={**opened.items, **read})
                if self.kept is not None:
                    opened.keep(open_round(self.kept))
        self.on_share(1.0)
        return {name: opened.items[name] for name in map(name_of, plan)}

    def _told(self, before: int, parts: int, share: float) -> None:
        self.on_share((before + share) / parts)

    def _opened(self, number: int) -> Evidence:
        """What was read of this round before, with the round's number in place of a count of rounds."""
        found = Evidence.kept(open_round(self.kept)) if self.kept is not None else None
        same = found is not None and (found.start, found.rounds) == (self.start, number)
        return found if found is not None and same else Evidence(self.start, number)


def open_round(kept: Path) -> Path:
    return kept.with_suffix(".open.json")
