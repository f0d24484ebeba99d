"""Example traces before and after: what backbone and adapted model write, and the information-gain staircase of each.

l_i is the log-probability of the gold answer after i steps, in nats per answer token, as in measures.information_gain: what one
step adds is l_i - l_{i-1}. Both traces are read by the backbone; the adapted model reads its own as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.measures.information_gain import staircases
from evaluation.measures.traces import greedy_replies
from evaluation.staircase import FLOOR, INFORMATIVE
from evaluation.task import Example, Task, Trace, is_right, question_text, trace_of


@dataclass(frozen=True)
class WrittenTrace:
    """`by_backbone`, `by_adapted`: l_0 ... l_t, one more than there are steps; of the backbone's trace the second is empty."""

    steps: tuple[str, ...]
    answer: str | None  # None: the completion gives none
    is_right: bool
    by_backbone: tuple[float, ...]
    by_adapted: tuple[float, ...] = ()


@dataclass(frozen=True)
class ExampleTrace:
    id: str
    question: str  # with context and options, without an instruction
    gold: str
    before: WrittenTrace
    after: WrittenTrace


def example_traces(
    engine: Engine, backbone: Backbone, profile: str, task: Task, examples: Sequence[Example]
) -> list[ExampleTrace]:
    """Greedy traces of the backbone and of the profile, on the same prompts."""
    sides: list[list[WrittenTrace]] = []
    for writer in (None, profile):
        texts = [reply.text for reply in greedy_replies(engine, backbone, writer, examples)]
        traces = [trace_of(text) for text in texts]
        steps = [trace.steps for trace in traces]
        outside = staircases(engine, backbone, None, examples, steps)
        inside = [[] for _ in steps] if writer is None else staircases(engine, backbone, writer, examples, steps)
        sides.append(
            [
                _written(trace, is_right(task, example, text), by_backbone, by_adapted)
                for example, text, trace, by_backbone, by_adapted in zip(examples, texts, traces, outside, inside, strict=True)
            ]
        )
    return [
        ExampleTrace(example.id, question_text(example), example.answer, before, after)
        for example, before, after in zip(examples, *sides, strict=True)
    ]


def traces_document(subject: str, backbone: str, by_task: Sequence[tuple[str, str, Sequence[ExampleTrace]]]) -> dict[str, Any]:
    """For JSON; `by_task` holds the name of each task, its role and its examples."""
    return {
        "subject": subject,
        "backbone": backbone,
        "split": "select",
        "unit": "nats per answer token",
        "informative": INFORMATIVE,
        "floor": FLOOR,
        "tasks": [{"task": name, "role": role, "examples": [asdict(one) for one in found]} for name, role, found in by_task],
    }


def _written(trace: Trace, right: bool, by_backbone: Sequence[float], by_adapted: Sequence[float]) -> WrittenTrace:
    return WrittenTrace(trace.steps, trace.answer, right, tuple(by_backbone), tuple(by_adapted))
