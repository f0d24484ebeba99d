"""The staircase of an answer: how likely it is after none, one, two ... all steps of a trace.

l_i is the log-probability of the answer after i steps, in nats per answer token, at least `FLOOR`; what step i tells about the
answer, its information gain, is l_i - l_(i-1) (Wu et al. 2025, arXiv 2506.02126, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from adapters.backbone import Backbone
from engine.decoding.answer import ANSWER_CUE
from engine.engine import Continuation
from evaluation.task import Example, comparable, question_text

Ids = tuple[int, ...]

INFORMATIVE = 0.05  # nats per answer token that a step must add to count as informative
# Below this an answer is hopeless, and how hopeless says nothing: a broken reader's -17 and -14 would look like a gain.
FLOOR = -5.0


@dataclass(frozen=True)
class Frame:
    """What stands before the steps in a reply, and between the steps and the answer."""

    opening: Ids = ()
    closing: Ids = ()

    @classmethod
    def of(cls, backbone: Backbone) -> Frame:
        """Steps from the first line on, and `Answer:` behind them."""
        return cls((), tuple(backbone.encode(ANSWER_CUE)))

    def around(self, trace: Ids) -> Ids:
        return (*self.opening, *trace, *self.closing)


def encoded(backbone: Backbone, trace: Sequence[str]) -> Ids:
    """Steps, one a line."""
    return joined([tuple(backbone.encode(f"{step}\n")) for step in trace])


def joined(steps: Sequence[Ids]) -> Ids:
    return tuple(chain.from_iterable(steps))


def cuts(steps: Sequence[Ids]) -> list[Ids]:
    """The trace after none, one, two ... all of its steps."""
    return [joined(steps[:kept]) for kept in range(len(steps) + 1)]


def filler(backbone: Backbone, count: int) -> Ids:
    """`count` tokens that say nothing and end as a step does; `count` is at least 1."""
    dots, end = backbone.encode(" ..."), backbone.encode("\n")
    return (*(dots * count)[: max(0, count - len(end))], *end)[-count:]


def reading(prompt: Ids, frame: Frame, trace: Ids, answer: Ids) -> Continuation:
    """Asks how likely the answer is behind the trace, which goes into the continuation: soft thoughts see the prompt alone."""
    before = frame.around(trace)
    return Continuation(prompt, (*before, *answer), scored_from=len(before))


def level(logprobs: Sequence[float]) -> float:
    """l_i of the log-probabilities of the answer's tokens."""
    return max(FLOOR, sum(logprobs) / len(logprobs))


def gains(staircase: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(staircase)]


def leaking_step(steps: Sequence[str], example: Example) -> int:
    """How many steps come before the one that states the answer; all of them if none does.

    It is the first step that contains the answer. Where the question or its options name the answer already, to name it gives
    nothing away (a step of box swaps lists every box): then it is the last step.
    """
    if not states(steps, example.answer):
        return len(steps)
    if states([question_text(example)], example.answer):
        return len(steps) - 1
    return next(index for index, step in enumerate(steps) if states([step], example.answer))


def states(trace: Sequence[str], answer: str) -> bool:
    """Whether a step contains the answer as words or numbers of its own."""
    return any(f" {comparable(answer)} " in f" {comparable(step)} " for step in trace)
