"""CoT-decoding: reasoning that is there without being asked for, behind a less likely first token.

The k likeliest first tokens are each continued greedily. What a branch answers is as sure as its answer tokens are: the mean of
the likeliest token's probability minus the second's, over the tokens of the answer alone. The answer with the largest sum of
these margins wins (Wang & Zhou 2024, arXiv 2402.10200, sections 2.2 and 2.3). A branch without an answer line is asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.decoding.budget import MAX_ANSWER_TOKENS, WrittenTrace, cue_after, force_answers, ids_within, write_traces
from engine.engine import MAX_TOP_LOGPROBS, Completes, Completion, GenerationRequest


@dataclass(frozen=True)
class Branch:
    """`margin` is NaN where the answer is empty."""

    trace: str
    answer: str
    margin: float

    @property
    def text(self) -> str:
        return f"{self.trace}{cue_after(self.trace)} {self.answer}"


@dataclass(frozen=True)
class Decoded:
    """The branches of one request, the likeliest first token first: that one is greedy decoding."""

    branches: tuple[Branch, ...]

    @property
    def greedy(self) -> Branch:
        return self.branches[0]

    @property
    def best(self) -> Branch:
        """The branch with the largest margin; the greedy one where none answers."""
        answered = [branch for branch in self.branches if not math.isnan(branch.margin)]
        return max(answered, key=lambda branch: branch.margin, default=self.greedy)

    @property
    def text(self) -> str:
        return self.best.text

    def vote(self, same: Callable[[str], str]) -> str:
        """The answer with the largest sum of margins; answers that `same` makes equal are one. Empty where no branch answers."""
        weights: dict[str, float] = {}
        first: dict[str, str] = {}
        for branch in self.branches:
            if not math.isnan(branch.margin):
                key = same(branch.answer)
                weights[key] = weights.get(key, 0.0) + branch.margin
                first.setdefault(key, branch.answer)
        return first[max(weights, key=lambda key: weights[key])] if weights else ""


@dataclass(frozen=True)
class CoTDecoding:
    """Costs `num_branches` times as much as greedy decoding. Always greedy after the first token, whatever a request asks."""

    num_branches: int = 10
    max_trace_tokens: int = 96
    max_answer_tokens: int = MAX_ANSWER_TOKENS

    def __post_init__(self) -> None:
        if not 2 <= self.num_branches <= MAX_TOP_LOGPROBS:
            raise ValueError(f"CoT-decoding takes from 2 to {MAX_TOP_LOGPROBS} branches, but got {self.num_branches}.")

    def complete(self, engine: Completes, backbone: Backbone, requests: Sequence[GenerationRequest]) -> list[Decoded]:
        asked = [replace(request, temperature=0.0, begun_ids=()) for request in requests]
        opened = engine.complete([replace(request, max_new_tokens=1, top_logprobs=self.num_branches) for request in asked])
        begun = [
            replace(request, begun_ids=(token_id,))
            for request, first in zip(asked, opened, strict=True)
            for token_id, _ in first.top_logprobs[0]
        ]
        written = write_traces(engine, backbone, begun, self.max_trace_tokens)
        # A reply may be over with its first token: it has no trace.
        traces = [
            WrittenTrace((), "") if request.begun_ids[0] in backbone.stop_ids else trace
            for request, trace in zip(begun, written, strict=True)
        ]
        answers = force_answers(engine, backbone, begun, traces, self.max_answer_tokens, top_logprobs=2)
        branches = iter(
            Branch(trace.text, answer.text.strip(), margin(backbone, answer))
            for trace, answer in zip(traces, answers, strict=True)
        )
        return [Decoded(tuple(next(branches) for _ in first.top_logprobs[0])) for first in opened]


def margin(backbone: Backbone, answer: Completion) -> float:
    """Mean over the answer's own tokens, no line end among them, of the two largest probabilities' difference."""
    if not answer.text.strip():
        return math.nan
    count = len(ids_within(backbone, answer.token_ids, answer.text))
    listed = answer.top_logprobs[: max(1, count)]
    return sum(math.exp(first.logprob) - math.exp(second.logprob) for first, second in listed) / len(listed)
