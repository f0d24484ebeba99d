"""Wandering: lines that were written before, loops, and answers that contradict their own trace (Lu et al., arXiv 2505.20296, 4).

All three are read on any trace that a profile writes. They are the paper's unnecessary exploration (state revisitation, infinite
self-loop) and its evaluation error (unfaithful conclusion), as string rules.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.measure import Readings
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.measures.traces import greedy_replies
from evaluation.task import Example, Task, comparable, is_right, same_answer, trace_of
from evaluation.tasks.generated import GeneratedTask, normalise_step

LOOP_LINES, LOOP_TIMES = 4, 3  # a self-loop: any so many lines in a row that stand in the trace so often


@dataclass(frozen=True)
class NewSteps:
    """Share of the trace's lines that it did not hold before, the gold trace's own repetitions aside; NaN without a trace.

    Parts: `revisitation` (1 minus the value), `self_loop` (1 when any four lines in a row occur three times), `num_lines`.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "new_steps"
    version: int = 1
    unit: str = "share of lines that are new"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        traces = [
            trace_of(completion.text) for completion in greedy_replies(engine, backbone, profile, examples, self.max_new_tokens)
        ]
        rates = [revisitation(trace.steps, example.steps) for trace, example in zip(traces, examples, strict=True)]
        return Readings.of(
            self,
            task,
            examples,
            [1 - rate for rate in rates],
            {
                "revisitation": rates,
                "self_loop": [self_loop(trace.steps) for trace in traces],
                "num_lines": [float(len(trace.steps)) for trace in traces],
            },
            reason="" if any(trace.steps for trace in traces) else "no reply holds a step",
        )


@dataclass(frozen=True)
class Conclusion:
    """1 when the answer is the last value that the written trace derives, 0 when it is another: right or wrong does not matter.

    NaN without an answer line, or where the trace derives no value that a rule can read: a change of form is no contradiction.

    Parts: `unfaithful` (1 minus the value), `answered`, `derived` (the trace derives a value), `right` (the answer is).
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "conclusion"
    version: int = 1
    unit: str = "share of answers that follow their trace"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        replies = [completion.text for completion in greedy_replies(engine, backbone, profile, examples, self.max_new_tokens)]
        traces = [trace_of(reply) for reply in replies]
        rates = [unfaithful(task, example, trace.steps, trace.answer) for example, trace in zip(examples, traces, strict=True)]
        derived = [derived_value(task, example, trace.steps) for example, trace in zip(examples, traces, strict=True)]
        return Readings.of(
            self,
            task,
            examples,
            [1 - rate for rate in rates],
            {
                "unfaithful": rates,
                "answered": [float(trace.answer is not None) for trace in traces],
                "derived": [float(value is not None) for value in derived],
                "right": [float(is_right(task, example, reply)) for example, reply in zip(examples, replies, strict=True)],
            },
            reason="no reply holds both a derived value and an answer" if all(map(math.isnan, rates)) else "",
        )


def revisitation(steps: Sequence[str], gold: Sequence[str] = ()) -> float:
    """Repeated lines / lines, without the repetitions that the gold trace has too; NaN without a line."""
    if not steps:
        return math.nan
    due = Counter(map(normalise_step, gold))
    counts = Counter(map(normalise_step, steps))
    return sum(count - min(count, max(1, due[line])) for line, count in counts.items()) / len(steps)


def self_loop(steps: Sequence[str]) -> float:
    """1 when any four lines in a row occur three times or more (they may overlap), else 0; NaN without a line."""
    if not steps:
        return math.nan
    lines = [normalise_step(step) for step in steps]
    runs = Counter(tuple(lines[start : start + LOOP_LINES]) for start in range(len(lines) - LOOP_LINES + 1))
    return float(max(runs.values(), default=0) >= LOOP_TIMES)


def unfaithful(task: Task, example: Example, steps: Sequence[str], answer: str | None) -> float:
    """1 when the answer contradicts the last value that the steps derive, 0 when it says it; NaN where either is missing."""
    value = derived_value(task, example, steps)
    return math.nan if value is None or answer is None else float(not same_answer(answer, value))


def derived_value(task: Task, example: Example, steps: Sequence[str]) -> str | None:
    """The last value that the steps derive for what is asked; None where no rule finds one.

    A generated problem says how a step of it derives a value. Of other tasks it is the option that the steps name last, or,
    where there are no options, the last number after an equals sign.
    """
    if isinstance(task, GeneratedTask):
        pattern = re.compile(task.problem(example.id).concludes, re.IGNORECASE)
        return next((found.group(1) for step in reversed(steps) if (found := pattern.search(step))), None)
    if example.choices:
        return _named_last(" ".join(steps), example.choices)
    numbers: list[str] = re.findall(r"=\s*(-?\d[\d.,]*)", " ".join(steps))
    return numbers[-1] if numbers else None


def _named_last(text: str, choices: Sequence[str]) -> str | None:
    # By where a name ends, and the longest of those: "diseases" is no option of its own inside "ear diseases".
    said = f" {comparable(text)} "
    ends = {choice: said.rfind(name) + len(name) for choice in choices if (name := f" {comparable(choice)} ") in said}
    return max(ends, key=lambda choice: (ends[choice], len(choice)), default=None)
