"""The cap curve: accuracy against tokens when a trace is simply cut and the answer forced; what a compression must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.backbone import Backbone
from engine.decoding.budget import ANSWER_CUE, force_answers, write_traces
from engine.engine import Engine, GenerationRequest
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example, Task, is_right, is_right_answer, reasoning_prompt

CAPS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96)


@dataclass(frozen=True)
class Point:
    """One way of writing the same items: which answers are right, and the tokens that were written, the answer's among them."""

    right: tuple[float, ...]
    tokens: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))

    @property
    def mean_tokens(self) -> float:
        return float(np.mean(self.tokens))


def written_point(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    task: Task,
    examples: Sequence[Example],
    max_new_tokens: int,
    also: str = "",
) -> Point:
    """Greedily, as the profile writes; `also` is said at the end of the user's turn."""
    asked = [
        GenerationRequest(
            backbone.chat_ids(f"{reasoning_prompt(example)}\n{also}".rstrip()),
            profile,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
        )
        for example in examples
    ]
    replies = engine.complete(asked)
    right = tuple(float(is_right(task, example, reply.text)) for example, reply in zip(examples, replies, strict=True))
    return Point(right, tuple(float(len(reply.token_ids)) for reply in replies))


def cap_points(
    engine: Engine,
    backbone: Backbone,
    task: Task,
    examples: Sequence[Example],
    max_new_tokens: int,
    caps: Sequence[int] = CAPS,
    profile: str | None = None,
) -> dict[int, Point]:
    """By cap, ascending; the last is `max_new_tokens`. A trace that ended before a cap costs what it took."""
    asked = [GenerationRequest(backbone.chat_ids(reasoning_prompt(example)), profile, temperature=0.0) for example in examples]
    whole = write_traces(engine, backbone, asked, max_new_tokens)
    cue = len(backbone.encode(f"\n{ANSWER_CUE}"))
    found: dict[int, Point] = {}
    for cap in (*(cap for cap in sorted(set(caps)) if cap < max_new_tokens), max_new_tokens):
        traces = [trace.cut(backbone, cap) for trace in whole]
        answers = force_answers(engine, backbone, asked, traces)
        right = tuple(
            float(is_right_answer(task, example, answer.text)) for example, answer in zip(examples, answers, strict=True)
        )
        tokens = tuple(float(len(trace.ids) + cue + len(answer.token_ids)) for trace, answer in zip(traces, answers, strict=True))
        found[cap] = Point(right, tokens)
    return found


def at_tokens(caps: Mapping[int, Point], mean_tokens: float) -> Point:
    """The curve at that many tokens: the mixture of the two caps around it, which anyone can serve by drawing one of them."""
    points = sorted(caps.values(), key=lambda point: point.mean_tokens)
    means = [point.mean_tokens for point in points]
    upper = int(np.searchsorted(means, mean_tokens))
    if upper == 0 or upper == len(points):
        return points[min(upper, len(points) - 1)]
    share = (mean_tokens - means[upper - 1]) / (means[upper] - means[upper - 1])
    low, high = points[upper - 1], points[upper]

    def mixed(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
        return tuple((1 - share) * a + share * b for a, b in zip(one, other, strict=True))

    return Point(mixed(low.right, high.right), mixed(low.tokens, high.tokens))


def above_cap(point: Point, caps: Mapping[int, Point], clusters: Sequence[str]) -> PairedChange:
    """How much more is right than under caps of as many tokens; above the curve where the interval lies above 0."""
    return paired_change(at_tokens(caps, point.mean_tokens).right, point.right, clusters)
