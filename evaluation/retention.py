"""Retention as an objective: the mean loss over the protected families, in units of what is tolerable."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.measure import Measure
from evaluation.measures import MEASURES
from evaluation.task import Task
from evaluation.tasks.generated import GeneratedTask
from evaluation.tasks.gym import GymTask
from evaluation.tasks.streamed import StreamedTask
from evaluation.tasks.user_data import UserTask

# What loss is tolerable when a recipe says nothing, by the unit of the measure.
DEFAULT_MARGINS = {
    "nats per token": 0.01,  # of a gold chain; a mean loss of 0.015 went with 8 % of the reasoner's written traces
    "share right in every step": 0.15,  # coarse: a trial writes few items; the gate writes many and has margins of its own
    "share right": 0.05,
    "nats": 0.5,  # of a minimal pair's margin, which is several
}
# Minimal pairs are a choice and a passage has a likelihood; a task with options is answered by the likeliest; every other task is
# written step by step.
_READ_ONLY = {  # search, gate
    "grammar": ("pair_margin", "pair_preference"),
    "text": ("text_likelihood", "text_likelihood"),
    "belief": ("belief", "belief"),
}


def search_measure(task: Task) -> Measure:
    """What a sweep guards a protected task by: continuous where it can be, since a trial reads few items."""
    if isinstance(task, GymTask):  # it has no gold chain
        return MEASURES["choice_accuracy" if task.has_choices else "generation"]
    if isinstance(task, UserTask | StreamedTask) and not task.has_chains:
        return gate_measure(task)
    return MEASURES[_READ_ONLY.get(task.name, ("chain_likelihood", ""))[0]]


def gate_measure(task: Task) -> Measure:
    """What the gate guards a protected task by: what is written, where the task is written.

    A user's task may ask for its gold chains in place of that: of a backbone that cannot write them, yet tells them from others.
    """
    if _by_likelihood(task):
        return MEASURES["chain_likelihood"]
    written = "generation" if is_written(task) else "choice_accuracy"
    return MEASURES[_READ_ONLY.get(task.name, ("", written))[1]]


def is_written(task: Task) -> bool:
    return task.name not in _READ_ONLY and not _by_likelihood(task) and not _has_options(task)


def _by_likelihood(task: Task) -> bool:
    return isinstance(task, UserTask | StreamedTask) and task.guard == "likelihood"


def _has_options(task: Task) -> bool:
    """Whether the first example has, as a domain's examples all have or all have not."""
    return not isinstance(task, GeneratedTask) and any(example.choices for example in task.examples("search", 1))


def capped_retention(changes: Mapping[str, float], margins: Mapping[str, float]) -> float:
    """Mean over the families of min(0, change / margin): a gain buys nothing, every loss counts. 0 is none lost."""
    if not changes:
        raise ValueError("Retention is a mean over protected families, but there is none. Protect at least one.")
    return sum(min(0.0, change / margins[family]) for family, change in changes.items()) / len(changes)


def violations(changes: Mapping[str, float], margins: Mapping[str, float]) -> dict[str, float]:
    """By family: the loss in margins, minus 1; at or below 0 is tolerable (Optuna's sign of a constraint)."""
    return {family: -change / margins[family] - 1.0 for family, change in changes.items()}
