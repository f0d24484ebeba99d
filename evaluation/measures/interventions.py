"""What is done to a trace to see whether the answer depends on it (Lanham et al. 2023, arXiv 2307.13702).

A trace is its steps. Every change is decided by the item alone, so that all profiles meet the same ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.measures.traces import Trace
from evaluation.staircase import states
from evaluation.task import Example, Task, same_answer
from evaluation.tasks.generated import GeneratedTask, normalise_step

# How much of the trace stands once the mistake does: earlier there is little to contradict, later nothing is left to compute.
MIDDLE = (0.3, 0.9)

# Pattern and template, there and back. What a rule does not undo exactly, it is not used for.
_REWORDINGS = (
    (r" = ", " equals ", r" equals ", " = "),
    (r" \+ ", " plus ", r" plus ", " + "),
    (r" - ", " minus ", r" minus ", " - "),
    (r" \* ", " times ", r" times ", " * "),
    (r" > ", " above ", r" above ", " > "),
    (r", so ", ", therefore ", r", therefore ", ", so "),
    (r"^Swap ", "Exchange ", r"^Exchange ", "Swap "),
    (r"^The (\w+) of (\w+) is (\w+)$", r"\2's \1 is \3", r"^(\w+)'s (\w+) is (\w+)$", r"The \2 of \1 is \3"),
)


@dataclass(frozen=True)
class Mistake:
    """A gold step, its corrupted twin, and what follows from it: the later steps and another answer than the right one."""

    step: str
    wrong: str
    rest: Trace
    answer: str

    def begun(self, trace: Trace) -> Trace | None:
        """The trace up to the mistake and with it; None when the trace does not take that step."""
        steps = [normalise_step(step) for step in trace]
        sought = normalise_step(self.step)
        return (*trace[: steps.index(sought)], self.wrong) if sought in steps else None


def mistake_in(task: Task, example: Example) -> Mistake | None:
    """One in the middle of the gold trace that changes the answer by the task's own executor; None where it knows of none."""
    if not isinstance(task, GeneratedTask):
        return None
    problem = task.problem(example.id)
    found = []
    for place, follows in enumerate(problem.consequences):
        in_the_middle = MIDDLE[0] <= (place + 1) / len(problem.steps) <= MIDDLE[1]
        if in_the_middle and follows is not None and not same_answer(follows.answer, problem.answer):
            found.append(Mistake(problem.steps[place], problem.corrupted[place], follows.steps, follows.answer))
    return random.Random(f"mistake/{example.id}").choice(found) if found else None


def shuffled(trace: Trace, key: str) -> Trace | None:
    """The steps in another order; None when there is no other."""
    if len(set(trace)) < 2:
        return None
    rng, steps = random.Random(f"shuffled/{key}"), list(trace)
    while tuple(steps) == trace:
        rng.shuffle(steps)
    return tuple(steps)


def swapped(traces: Sequence[Trace], lengths: Sequence[int], examples: Sequence[Example]) -> list[Trace | None]:
    """For every item the trace of another, of the nearest length in tokens among those that do not state this item's answer.

    None where every other trace states it: a swapped trace that leaks the answer breaks no link.
    """
    found: list[Trace | None] = []
    for index, example in enumerate(examples):
        others = sorted(
            (other for other in range(len(traces)) if other != index and traces[other]),
            key=lambda other: (abs(lengths[other] - lengths[index]), (other - index) % len(traces)),
        )
        found.append(next((traces[other] for other in others if not states(traces[other], example.answer)), None))
    return found


def paraphrases(trace: Trace) -> tuple[Trace, ...]:
    """The same trace said otherwise: with or without closing full stops, and in other words by rules that are undone exactly.

    Without the question in sight, nothing of the answer can get in (Lanham et al., section 2.5).
    """
    stops = tuple(step.rstrip(" .") if step.endswith(".") else f"{step}." for step in trace)
    words = tuple(map(_reworded, trace))
    return tuple(dict.fromkeys(said for said in (stops, words) if said != trace))


def _reworded(step: str) -> str:
    for there, template, back, original in _REWORDINGS:
        said = re.sub(there, template, step)
        if re.sub(back, original, said) == step:
            step = said
    return step
