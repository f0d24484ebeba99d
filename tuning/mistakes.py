"""Traces that go astray at a known step, and the critic that finds the step again.

A generated problem knows its own false steps and what follows from them. Of any other row with a rationale, the trace is its own
up to a step and another row's from there on. The critic is never told where that was: the task checks every step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice, zip_longest
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from evaluation.task import Example, Task, answer_line, is_right, same_answer
from evaluation.tasks import FAMILIES
from evaluation.tasks.generated import GeneratedTask, StepCheck, normalise_step

Problems = Literal["domain", "families", "both"]
MAX_DONORS = 64  # rows that a false continuation is looked for in


@runtime_checkable
class StepChecking(Task, Protocol):
    """A task that says of every written step whether it holds."""

    def check(self, example: Example, completion: str) -> StepCheck: ...


@dataclass(frozen=True)
class Response:
    """What somebody might have answered, one step a line."""

    steps: tuple[str, ...]
    answer: str

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self.steps, answer_line(self.answer))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Posed(NamedTuple):
    """A problem, with rows of its task that may lend it what is false or idle in it."""

    task: Task
    example: Example
    others: Sequence[Example]


def posed_of(task: Task, examples: Sequence[Example], problems: Problems, seed: int) -> Iterator[Posed]:
    """Problems that have steps, without end: the domain's own, those of the generated families, or the two in turn."""
    sources = list[list[Posed]]()
    if problems != "families":
        with_steps = [example for example in examples if example.steps]
        sources.append([Posed(task, example, with_steps) for example in with_steps])
    if problems != "domain":
        share = math.ceil(len(examples) / len(FAMILIES))
        drawn = {own: own.examples("train", share, seed) for own in FAMILIES.values()}
        in_turns = chain.from_iterable(zip_longest(*([Posed(own, one, rows) for one in rows] for own, rows in drawn.items())))
        sources.append([posed for posed in in_turns if posed is not None])
    passes = [cycle(source) for source in sources]
    while any(sources):
        for one in passes:
            yield from islice(one, 1)


def gold(example: Example) -> Response:
    return Response(example.steps, example.answer)


def first_wrong(task: Task, example: Example, response: Response) -> int | None:
    """The place of the first line that is wrong, the answer line counted last; None when all are right.

    A task that checks no steps says what its own rationale says, line by line.
    """
    if isinstance(task, StepChecking):
        valid: Sequence[bool] = task.check(example, response.text).valid
    else:
        meant = [normalise_step(step) for step in example.steps]
        valid = [step in meant[place : place + 1] for place, step in enumerate(map(normalise_step, response.steps))]
    wrong = next((place for place, holds in enumerate(valid) if not holds), None)
    if wrong is None and not is_right(task, example, response.text):
        return len(response.steps)
    return wrong


def astray(task: Task, example: Example, others: Sequence[Example], rng: random.Random) -> Response | None:
    """A response that is right up to a step and wrong from there on; None where no row can lend it another step."""
    if isinstance(task, GeneratedTask):
        return _as_the_problem_says(task, example, rng)
    donors = rng.sample(others, min(MAX_DONORS, len(others)))
    for place in rng.sample(range(len(example.steps)), len(example.steps)):
        fitting = [other for other in donors if _differs(example, other, place)]
        alike = [other for other in fitting if _label(other.steps[place]) == _label(example.steps[place])]
        if fitting:
            other = rng.choice(alike or fitting)
            return Response((*example.steps[:place], *other.steps[place:]), _wrong_answer(example, other, rng))
    return None


def _as_the_problem_says(task: GeneratedTask, example: Example, rng: random.Random) -> Response:
    problem = task.problem(example.id)
    place = rng.randrange(len(problem.corrupted))
    begun = (*problem.steps[:place], problem.corrupted[place])
    follows = problem.consequences[place] if problem.consequences else None
    if follows is not None:
        return Response((*begun, *follows.steps), follows.answer)
    return Response((*begun, *problem.steps[place + 1 :]), rng.choice(problem.rivals or (problem.answer,)))


def _differs(example: Example, other: Example, place: int) -> bool:
    if len(other.steps) <= place or same_answer(other.answer, example.answer):
        return False
    return normalise_step(other.steps[place]) != normalise_step(example.steps[place])


def _label(step: str) -> str:
    """What a step of the form `Block: Cholera` is about."""
    return step.partition(":")[0] if ":" in step else ""


def _wrong_answer(example: Example, other: Example, rng: random.Random) -> str:
    """Where the other trace arrives; among listed options one of these, so that no answer is wrong at first sight."""
    if example.choices is None or not example.listed or other.answer in example.choices:
        return other.answer
    return rng.choice([choice for choice in example.choices if choice != example.answer] or [other.answer])
