"""The cap curve: accuracy against tokens when a trace is simply cut and the answer forced; what a compression must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapters.backbone import Backbone
from engine.decoding.budget import closing_after, force_answers, read_trace
from engine.decoding.served import complete_as_served
from engine.engine import Completion, Engine, GenerationRequest
from evaluation.measure import Measure, Readings
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
    prompt: Callable[[Example], str] = reasoning_prompt,
) -> Point:
    """Greedily, as the profile writes; `also` is said at the end of the user's turn."""
    asked = _requests(backbone, profile, examples, max_new_tokens, also, prompt)
    return _read(task, examples, complete_as_served(engine, backbone, asked))


def cap_points(
    engine: Engine,
    backbone: Backbone,
    task: Task,
    examples: Sequence[Example],
    max_new_tokens: int,
    caps: Sequence[int] = CAPS,
) -> dict[int, Point]:
    """The backbone's, by cap, ascending; the last, `max_new_tokens`, is its replies as they are.

    A reply whose trace ended within the cap is not touched by it, so that what changes nothing lies on the curve. The cue that
    forces an answer counts as written.
    """
    asked = _requests(backbone, None, examples, max_new_tokens)
    replies = engine.complete(asked)
    traces = [read_trace(backbone, (), reply, max_new_tokens) for reply in replies]
    plain = _read(task, examples, replies)
    found: dict[int, Point] = {}
    for cap in sorted({cap for cap in caps if cap < max_new_tokens}):
        right, tokens = list(plain.right), list(plain.tokens)
        cut = {
            place: trace.cut(backbone, cap) for place, trace in enumerate(traces) if not trace.has_ended or len(trace.ids) > cap
        }
        answers = force_answers(engine, backbone, [asked[place] for place in cut], list(cut.values()))
        for (place, trace), answer in zip(cut.items(), answers, strict=True):
            right[place] = float(is_right_answer(task, examples[place], answer.text))
            closing = backbone.encode(closing_after(backbone, trace.text))
            tokens[place] = float(len(trace.ids) + len(closing) + len(answer.token_ids))
        found[cap] = Point(tuple(right), tuple(tokens))
    return found | {max_new_tokens: plain}


def at_tokens(caps: Mapping[int, Point], mean_tokens: float) -> Point:
    """The curve at that many tokens: the best that a cap, or a draw between two of them, gives for no more.

    A draw, since anyone can serve one: where no trace at all and a whole one are both better than half of one, what lies between
    must beat the two. The best is taken on these very items, which favours the curve. Below its first point, it is that point.
    """
    points = sorted(caps.values(), key=lambda point: (point.mean_tokens, -point.accuracy))
    reached = [point for point in points if point.mean_tokens <= mean_tokens] or points[:1]
    drawn = [
        _mixed(low, high, (mean_tokens - low.mean_tokens) / (high.mean_tokens - low.mean_tokens))
        for low in reached
        for high in points
        if low.mean_tokens <= mean_tokens < high.mean_tokens
    ]
    return max((*reached, *drawn), key=lambda point: point.accuracy)


def _mixed(low: Point, high: Point, share: float) -> Point:
    """`share` of the draws go to the second."""

    def mixed(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
        return tuple((1 - share) * a + share * b for a, b in zip(one, other, strict=True))

    return Point(mixed(low.right, high.right), mixed(low.tokens, high.tokens))


def above_cap(point: Point, caps: Mapping[int, Point], clusters: Sequence[str], drawn_clusters: bool = False) -> PairedChange:
    """How much more is right than under caps of no more tokens; above the curve where the interval lies above 0."""
    return paired_change(at_tokens(caps, point.mean_tokens).right, point.right, clusters, drawn_clusters=drawn_clusters)


def _requests(
    backbone: Backbone,
    profile: str | None,
    examples: Sequence[Example],
    max_new_tokens: int,
    also: str = "",
    prompt: Callable[[Example], str] = reasoning_prompt,
) -> list[GenerationRequest]:
    texts = [f"{prompt(example)}\n{also}".rstrip() for example in examples]
    return [GenerationRequest(backbone.chat_ids(text), profile, max_new_tokens=max_new_tokens, temperature=0.0) for text in texts]


def _read(task: Task, examples: Sequence[Example], replies: Sequence[Completion]) -> Point:
    right = tuple(float(is_right(task, example, reply.text)) for example, reply in zip(examples, replies, strict=True))
    return Point(right, tuple(float(len(reply.token_ids)) for reply in replies))


@dataclass(frozen=True)
class AboveCap:
    """1 where the answer is right. `against` makes of the backbone's reading the cap curve at as many tokens as the other wrote.

    Parts: `tokens`, and of the backbone `right_at_b` and `tokens_at_b` for every cap b.
    """

    max_new_tokens: int = 128
    name: str = "above_cap"
    version: int = 1
    unit: str = "share right"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if profile is not None:
            point = written_point(engine, backbone, profile, task, examples, self.max_new_tokens)
            return Readings.of(self, task, examples, point.right, {"tokens": point.tokens})
        caps = cap_points(engine, backbone, task, examples, self.max_new_tokens)
        plain, parts = caps[self.max_new_tokens], dict[str, tuple[float, ...]]()
        for cap, one in caps.items():
            parts |= {f"right_at_{cap}": one.right, f"tokens_at_{cap}": one.tokens}
        return Readings.of(self, task, examples, plain.right, {"tokens": plain.tokens, **parts})

    def against(self, base: Readings, adapted: Readings) -> tuple[float, ...]:
        """One value an item, in [0, 1]."""
        caps = [int(name.removeprefix("right_at_")) for name in base.parts if name.startswith("right_at_")]
        points = {cap: Point(base.parts[f"right_at_{cap}"], base.parts[f"tokens_at_{cap}"]) for cap in caps}
        return at_tokens(points, adapted.part_mean("tokens")).right


if TYPE_CHECKING:
    _: Measure = AboveCap()
