"""Branches of a reply: CoT-decoding within the release's policy, and a vote for the one that is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from adapters.backbone import Backbone
from adapters.spec import Range, Spec
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.budget import MAX_ANSWER_TOKENS
from engine.decoding.cot_decoding import Branch, CoTDecoding, Decoded
from engine.decoding.vote import length_filtered_vote, weighted_vote
from engine.engine import MAX_TOP_LOGPROBS

if TYPE_CHECKING:
    from engine.profile import DecodingPolicy


class Branches(Spec):
    """Of a release's policy, or of one request.

    `vote`: `margin` sums the margins of equal answers, `majority` counts them, `best` takes the surest branch, and `length`
    filters by length. A `temperature` above 0 samples the branches: with `majority`, self-consistency.
    """

    num_branches: Annotated[Annotated[int, Field(ge=2, le=MAX_TOP_LOGPROBS)], Range(2, 10, log=True)] = 10
    max_trace_tokens: Annotated[int, Field(ge=1)] = 96
    max_answer_tokens: Annotated[int, Field(ge=1)] = MAX_ANSWER_TOKENS
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    vote: Literal["margin", "majority", "best", "length"] = "margin"
    steps_per_bin: Annotated[int, Field(ge=1)] = 2
    num_bins: Annotated[int, Field(ge=1)] = 3

    def within(self, backbone: Backbone, policy: DecodingPolicy, max_tokens: int) -> CoTDecoding:
        """No branch is longer than `max_tokens`, or than the policy's budget where it has one."""
        if (end := policy.end_on(backbone)) != ANSWER_CUE:
            raise ValueError(
                f"Branches are read by their {ANSWER_CUE!r} line, but the release's traces end with {end!r}. Ask for one reply."
            )
        budget = policy.budget
        answer = self.max_answer_tokens if budget is None else min(self.max_answer_tokens, budget.max_answer_tokens)
        needed = len(backbone.encode(f"\n{ANSWER_CUE}")) + answer
        caps = [self.max_trace_tokens, max_tokens - needed]
        if budget is not None and budget.max_trace_tokens is not None:
            caps.append(budget.max_trace_tokens)
        if min(caps) < 1:
            raise ValueError(
                f"A branch is a trace of one token or more with {needed} for its answer, but {min(caps) + needed} are allowed. "
                "Ask for more tokens, for shorter answers, or for one reply."
            )
        return CoTDecoding(self.num_branches, min(caps), answer, self.temperature)

    def winner(self, decoded: Decoded, same: Callable[[str], str]) -> Branch:
        """The surest of the branches that give the winning answer; the greedy branch where none answers."""
        answered = decoded.answered
        if self.vote == "best" or not answered:
            return decoded.best
        ballots = [branch.ballot for branch in answered]
        if self.vote == "margin":
            answer = decoded.vote(same)
        elif self.vote == "majority":
            answer = weighted_vote([replace(ballot, weight=1.0) for ballot in ballots], same)
        else:
            answer = length_filtered_vote(ballots, same, self.steps_per_bin, self.num_bins)
        return max((b for b in answered if same(b.answer) == same(answer)), key=lambda branch: branch.margin)
