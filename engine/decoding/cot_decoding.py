"""CoT-decoding: reasoning that is there without being asked for, behind a less likely first token.

The k likeliest first tokens are each continued greedily. Its null, self-consistency, samples k traces instead (Wang et al. 2022,
arXiv 2203.11171). What a branch answers is as sure as its answer tokens are: the mean of
the likeliest token's probability minus the second's, over the tokens of the answer alone. The answer with the largest sum of
these margins wins (Wang & Zhou 2024, arXiv 2402.10200, sections 2.2 and 2.3). A branch without an answer line is asked for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.decoding.answer import cue_after
from engine.decoding.budget import (
    MAX_ANSWER_TOKENS,
    WrittenTrace,
    answer_request,
    ids_within,
    read_trace,
    trace_request,
    without_budget,
)
from engine.decoding.vote import Ballot, weighted_vote
from engine.engine import MAX_TOP_LOGPROBS, Completes, Completion, GenerationRequest


@dataclass(frozen=True)
class Branch:
    """`margin` is NaN where the answer is empty."""

    trace: str
    answer: str
    margin: float
    is_cut: bool = False  # the answer, by its most tokens

    @property
    def is_answered(self) -> bool:
        return not math.isnan(self.margin)

    @property
    def text(self) -> str:
        return f"{self.trace}{cue_after(self.trace)} {self.answer}"

    @property
    def ballot(self) -> Ballot:
        """Its steps are its lines."""
        return Ballot(self.answer, self.margin, sum(bool(line.strip()) for line in self.trace.splitlines()))


@dataclass(frozen=True)
class Decoded:
    """The branches of one request, the likeliest first token first: that one is greedy decoding, unless they were sampled."""

    branches: tuple[Branch, ...]

    @property
    def greedy(self) -> Branch:
        return self.branches[0]

    @property
    def best(self) -> Branch:
        """The branch with the largest margin; the greedy one where none answers."""
        return max(self.answered, key=lambda branch: branch.margin, default=self.greedy)

    @property
    def answered(self) -> tuple[Branch, ...]:
        return tuple(branch for branch in self.branches if branch.is_answered)

    @property
    def text(self) -> str:
        return self.best.text

    def vote(self, same: Callable[[str], str]) -> str:
        """The answer with the largest sum of margins; answers that `same` makes equal are one. Empty where no branch answers."""
        return weighted_vote([branch.ballot for branch in self.answered], same)


Rounds = Generator[list[GenerationRequest], list[Completion], list[Decoded]]


@dataclass(frozen=True)
class CoTDecoding:
    """Costs `num_branches` times as much as greedy decoding. Always greedy after the first token, whatever a request asks.

    With a `temperature` above 0 the traces are sampled from their first token on; their answers are greedy, as ever.
    """

    num_branches: int = 10
    max_trace_tokens: int = 96
    max_answer_tokens: int = MAX_ANSWER_TOKENS
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.num_branches <= MAX_TOP_LOGPROBS:
            raise ValueError(f"CoT-decoding takes from 2 to {MAX_TOP_LOGPROBS} branches, but got {self.num_branches}.")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"Branches are sampled at a temperature in [0, 2], but got {self.temperature:g}. Give 0 for none.")

    def complete(self, engine: Completes, backbone: Backbone, requests: Sequence[GenerationRequest]) -> list[Decoded]:
        rounds = self.rounds(backbone, [without_budget(engine, request) for request in requests])
        written: list[Completion] | None = None
        while True:
            try:
                asked = next(rounds) if written is None else rounds.send(written)
            except StopIteration as done:
                found: list[Decoded] = done.value
                return found
            written = engine.complete(asked)

    def rounds(self, backbone: Backbone, requests: Sequence[GenerationRequest]) -> Rounds:
        """For who writes otherwise than by `complete`, as a service does that streams: yields requests, is sent completions.

        The requests come without a budget in their policy: the branches have their own.
        """
        # Of several sets of soft thoughts the first is read: a vote among them would be one among branches again.
        asked = [replace(request, temperature=0.0, begun_ids=(), chain=request.chain or 0) for request in requests]
        if self.temperature:
            begun = [request for request in asked for _ in range(self.num_branches)]
        else:
            opened = yield [replace(request, max_new_tokens=1, top_logprobs=self.num_branches) for request in asked]
            begun = [
                replace(request, begun_ids=(token_id,))
                for request, first in zip(asked, opened, strict=True)
                for token_id, _ in first.top_logprobs[0]
            ]
        written = yield [
            self._drawn(trace_request(backbone, request, self.max_trace_tokens), place) for place, request in enumerate(begun)
        ]
        # A reply may be over with its first token: it has no trace.
        traces = [
            WrittenTrace((), "")
            if backbone.stop_ids.intersection(request.begun_ids)
            else read_trace(backbone, request.begun_ids, completion, self.max_trace_tokens)
            for request, completion in zip(begun, written, strict=True)
        ]
        answers = yield [
            answer_request(backbone, request, trace, self.max_answer_tokens, top_logprobs=2)
            for request, trace in zip(begun, traces, strict=True)
        ]
        branches = [
            Branch(trace.text, answer.text.strip(), margin(backbone, answer), answer.finish_reason == "length")
            for trace, answer in zip(traces, answers, strict=True)
        ]
        return [Decoded(one) for one in zip(*[iter(branches)] * self.num_branches, strict=True)]

    def _drawn(self, request: GenerationRequest, place: int) -> GenerationRequest:
        """Every branch draws for itself; under a request's seed, the same again."""
        if not self.temperature:
            return request
        seed = None if request.seed is None else random.Random(f"{request.seed}/{place}").getrandbits(63)
        return replace(request, temperature=self.temperature, seed=seed)


def margin(backbone: Backbone, answer: Completion) -> float:
    """Mean over the answer's own tokens, no line end among them, of the two largest probabilities' difference."""
    if not answer.text.strip():
        return math.nan
    count = len(ids_within(backbone, answer.token_ids, answer.text))
    listed = answer.top_logprobs[: max(1, count)]
    return sum(math.exp(first.logprob) - math.exp(second.logprob) for first, second in listed) / len(listed)
