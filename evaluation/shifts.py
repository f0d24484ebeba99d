"""Shifts of a generated task: the like of every problem, moved out of the distribution in one way (DataAlchemy's axes).

Format: wording, order, casing, spacing, distractor. The problem stays as it is, and so does its gold chain: what changes says
nothing (nothing that a solver needs is deleted or replaced, unlike in the paper's noise).
Length: steps_minus_1, steps_plus_1, steps_plus_2, counted from the shortest and longest that the task draws.
Task and element: the variants of the task itself, with a gold chain of their own.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from evaluation.task import normalise
from evaluation.tasks.generated import GeneratedTask, Make, Problem

# Without a name, a number, a letter, a thing, a trait, a day or a relative of any family.
DISTRACTORS = (
    "It rained for hours.",
    "Somebody hummed quietly.",
    "The windows stood open.",
    "Nobody said anything.",
    "Snow fell outside.",
    "The lights were dim.",
)


def shifts_of(task: GeneratedTask) -> dict[str, GeneratedTask]:
    """The shifted tasks, by the name of the shift; a task has those that mean something for it.

    A shifted task is a task like any other. Its `example` of an id of the original task is that example's twin: of the same
    random draws, number of steps and wording, but for what is shifted. The order is shifted where the task says which
    statements are `movable`: the operations of an arithmetic chain are not.
    """
    shortest, longest = min(task.lengths), max(task.lengths)
    lengths = {"steps_minus_1": shortest - 1, "steps_plus_1": longest + 1, "steps_plus_2": longest + 2}
    makes: dict[str, Make] = dict(task.variants)
    makes |= {name: partial(_at_length, task.make, length) for name, length in lengths.items() if length > 0}
    if not task.held_out_wording:
        makes["wording"] = partial(_in_wording, task.make, task.num_wordings - 1)
    rewrites = {"casing": _upper_case, "spacing": _spaced_out, "distractor": _distracted}
    if task.problem(f"{task.name}/0/0/{longest}/0").movable:
        rewrites["order"] = _moved
    makes |= {name: partial(_rewritten, task.make, name, rewrite) for name, rewrite in rewrites.items()}
    return {name: replace(_drawn(task, lengths.get(name)), name=f"{task.name}+{name}", make=made) for name, made in makes.items()}


def _drawn(task: GeneratedTask, length: int | None) -> GeneratedTask:
    return replace(task if length is None else task.at_length(length), variants=())


def _at_length(make: Make, length: int, rng: random.Random, num_steps: int, wording: int) -> Problem:
    return make(rng, length, wording)


def _in_wording(make: Make, held_out: int, rng: random.Random, num_steps: int, wording: int) -> Problem:
    return make(rng, num_steps, held_out)


def _rewritten(
    make: Make, name: str, rewrite: Callable[[random.Random, Problem], str], rng: random.Random, num_steps: int, wording: int
) -> Problem:
    problem = make(rng, num_steps, wording)
    question = rewrite(random.Random(f"{name}/{problem.question}"), problem)
    lost = Counter(normalise(problem.question).split()) - Counter(normalise(question).split())
    assert not lost and question != problem.question, f"{name} must keep every word, but {dict(lost)} went: {question!r}"
    return replace(problem, question=question)


def _upper_case(rng: random.Random, problem: Problem) -> str:
    return problem.question.upper()


def _spaced_out(rng: random.Random, problem: Problem) -> str:
    """A line for each sentence, and every other space doubled, more or less."""
    lines = re.sub(r"(?<=[.?]) ", "\n", problem.question)
    return re.sub(" ", lambda _: rng.choice((" ", "  ")), lines).replace(" ", "  ", 1)


def _distracted(rng: random.Random, problem: Problem) -> str:
    """In front, where it comes between no statement and what refers to it."""
    return f"{rng.choice(DISTRACTORS)} {problem.question}"


def _moved(rng: random.Random, problem: Problem) -> str:
    """The movable statements in another order, in the places where they stood."""
    order = list(problem.movable)
    while tuple(order) == problem.movable:
        rng.shuffle(order)
    places, statements = iter(order), "|".join(map(re.escape, problem.movable))
    return re.sub(statements, lambda _: next(places), problem.question)
