"""A budget of trace tokens: at most so many are written, then the answer is forced; an end that comes too early can be ignored.

The cap is the null that every claim of shorter reasoning is compared with. To ignore an end is the budget forcing of s1
(Muennighoff et al. 2025, arXiv 2501.19393): where the model would end its trace, its likeliest other token stands instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, model_validator

from adapters.backbone import Backbone
from adapters.spec import Range, Spec
from engine.decoding.answer import ANSWER_CUE, cue_after
from engine.engine import MAX_TOP_LOGPROBS, Completes, Completion, GenerationRequest, TokenLogprob

MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class WrittenTrace:
    """What stands before the answer cue, or the end marker. `has_ended`: by the model, with that or with the end of its text."""

    ids: tuple[int, ...]
    text: str
    has_ended: bool = False
    instead: int | None = None  # the likeliest token other than the one that began the end; None where none is known

    def cut(self, backbone: Backbone, max_tokens: int) -> WrittenTrace:
        """Its first tokens: what a smaller budget would have left of it."""
        if len(self.ids) <= max_tokens:
            return self
        ids = self.ids[:max_tokens]
        return WrittenTrace(ids, backbone.decode(ids))


@dataclass(frozen=True)
class Budgeted:
    """A trace within its budget and the answer after it."""

    trace: WrittenTrace
    answer: str
    closing: str  # what stands between them

    @property
    def text(self) -> str:
        return f"{self.trace.text}{self.closing} {self.answer}"


def end_of_trace(backbone: Backbone) -> str:
    """What ends a trace: the end marker of a backbone that thinks between markers, the answer cue of any other."""
    return ANSWER_CUE if backbone.markers is None else backbone.markers.end


def closing_after(backbone: Backbone, text: str) -> str:
    """What is forced between a trace and its answer: the answer cue, behind the end marker where the backbone has one."""
    if backbone.markers is None:
        return cue_after(text)
    line = "" if not text or text.endswith("\n") else "\n"
    return f"{line}{backbone.markers.end}\n\n{ANSWER_CUE}"


class Budget(Spec):
    """At most `max_trace_tokens` and at least `min_trace_tokens`; the first `num_ignored_ends` ends between them do not stand.

    The answer has a budget of its own, so that a long trace cannot use it up, and is one line unless `answer_is_line` is off: a
    model that is cut goes on with its trace behind the answer. With `reserves_answer` off a trace may use up the answer's tokens:
    the cap then does not depend on how long the reply may be. `ramp`: what the line's end, and at a line's start
    the answer cue, gains in logits from nine tenths of the cap on, rising to this at the cap. In the engine a budget is a part of
    a decoding policy (`row_budget.py`); `complete` is the same cap over any engine, in two calls.
    """

    max_trace_tokens: Annotated[Annotated[int, Field(ge=0)] | None, Range(4, 1024, log=True)] = None  # None: no cap
    min_trace_tokens: Annotated[int, Field(ge=0), Range(0, 256)] = 0
    num_ignored_ends: Annotated[int, Field(ge=0), Range(0, 4)] = 0
    max_answer_tokens: Annotated[int, Field(ge=1)] = MAX_ANSWER_TOKENS
    answer_is_line: bool = True
    reserves_answer: bool = True
    ramp: Annotated[float, Field(ge=0), Range(0, 20)] = 0.0

    @model_validator(mode="after")
    def _minimum_below_cap(self) -> Budget:
        if self.max_trace_tokens is not None and self.min_trace_tokens > self.max_trace_tokens:
            raise ValueError(
                f"A trace is not longer than its cap, but got min_trace_tokens {self.min_trace_tokens} and max_trace_tokens "
                f"{self.max_trace_tokens}. Raise the cap or lower the minimum."
            )
        if self.ramp and self.max_trace_tokens is None:
            raise ValueError(f"A ramp rises up to a cap, but got ramp {self.ramp:g} without max_trace_tokens. Give a cap.")
        return self

    def complete(self, engine: Completes, backbone: Backbone, requests: Sequence[GenerationRequest]) -> list[Budgeted]:
        """The cap and the ignored ends, over any engine. A request's own `max_new_tokens` and `stop` are not used."""
        if self.max_trace_tokens is None or self.min_trace_tokens or self.ramp or not self.answer_is_line:
            raise ValueError(
                f"In two calls a budget is a cap and ignored ends, but got {self}. Load a profile with this policy instead."
            )
        traces = write_traces(engine, backbone, requests, self.max_trace_tokens)
        for _ in range(self.num_ignored_ends):
            traces = extended(engine, backbone, requests, traces, self.max_trace_tokens)
        answers = force_answers(engine, backbone, requests, traces, self.max_answer_tokens)
        return [
            Budgeted(trace, answer.text.strip(), closing_after(backbone, trace.text))
            for trace, answer in zip(traces, answers, strict=True)
        ]


def write_traces(
    engine: Completes, backbone: Backbone, requests: Sequence[GenerationRequest], max_tokens: int
) -> list[WrittenTrace]:
    """The beginning of every reply up to its trace's end, cut after `max_tokens`; a request's `begun_ids` belong to the trace."""
    asked = [trace_request(backbone, without_budget(engine, request), max_tokens) for request in requests]
    return [
        read_trace(backbone, request.begun_ids, completion, max_tokens)
        for request, completion in zip(asked, engine.complete(asked), strict=True)
    ]


def trace_request(backbone: Backbone, request: GenerationRequest, max_tokens: int) -> GenerationRequest:
    """What is asked for a trace; `read_trace` reads the completion."""
    # Room for the end, so that a trace of just `max_tokens` is seen to have ended.
    end = end_of_trace(backbone)
    room = max_tokens + len(backbone.encode(f"\n{end}"))
    return replace(
        request,
        max_new_tokens=max(1, room - len(request.begun_ids)),
        stop=(end,),
        top_logprobs=min(MAX_TOP_LOGPROBS, len(backbone.stop_ids) + 2),
    )


def extended(
    engine: Completes,
    backbone: Backbone,
    requests: Sequence[GenerationRequest],
    traces: Sequence[WrittenTrace],
    max_tokens: int,
) -> list[WrittenTrace]:
    """Every trace that ended before `max_tokens`, with that end ignored and the trace gone on; the others as they are."""
    short = [
        (place, (*trace.ids, trace.instead))
        for place, trace in enumerate(traces)
        if trace.has_ended and trace.instead is not None and len(trace.ids) < max_tokens
    ]
    resumed = write_traces(engine, backbone, [replace(requests[place], begun_ids=ids) for place, ids in short], max_tokens)
    found = list(traces)
    for (place, _), trace in zip(short, resumed, strict=True):
        found[place] = trace
    return found


def without_budget(engine: Completes, request: GenerationRequest) -> GenerationRequest:
    """For callers that set the budget themselves: the same request under its policy without the budget of that."""
    policy = request.policy
    if policy is None and request.profile is not None:
        policy = engine.profile(request.profile).policy
    if policy is None or policy.budget is None:
        return request
    return replace(request, policy=policy.model_copy(update={"budget": None}))


def force_answers(
    engine: Completes,
    backbone: Backbone,
    requests: Sequence[GenerationRequest],
    traces: Sequence[WrittenTrace],
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
) -> list[Completion]:
    """The rest of the answer line after each trace and what closes it."""
    asked = [
        answer_request(backbone, without_budget(engine, request), trace, max_answer_tokens)
        for request, trace in zip(requests, traces, strict=True)
    ]
    return engine.complete(asked)


def answer_request(
    backbone: Backbone, request: GenerationRequest, trace: WrittenTrace, max_tokens: int, top_logprobs: int = 0
) -> GenerationRequest:
    return replace(
        request,
        begun_ids=(*trace.ids, *backbone.encode(closing_after(backbone, trace.text))),
        max_new_tokens=max_tokens,
        stop=("\n",),
        top_logprobs=top_logprobs,
    )


def ids_within(backbone: Backbone, ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The longest beginning of the ids that writes no more than the text, which their own text begins with; no end token."""
    count = bisect_right(range(len(ids) + 1), len(text), key=lambda upto: len(backbone.decode(ids[:upto]))) - 1
    while count and ids[count - 1] in backbone.stop_ids:
        count -= 1
    return tuple(ids[:count])


def read_trace(backbone: Backbone, begun: tuple[int, ...], completion: Completion, max_tokens: int) -> WrittenTrace:
    whole = (*begun, *completion.token_ids)
    text = backbone.decode(whole)
    before, cue, _ = text.partition(end_of_trace(backbone))
    ids = ids_within(backbone, whole, before)
    if len(ids) > max_tokens or not (cue or whole[-1] in backbone.stop_ids):
        return WrittenTrace(ids, before).cut(backbone, max_tokens)
    place = len(ids) - len(begun)
    listed = completion.top_logprobs[place] if 0 <= place < len(completion.top_logprobs) else ()
    return WrittenTrace(ids, before, True, _other(listed, {whole[len(ids)], *backbone.stop_ids}))


def _other(listed: Sequence[TokenLogprob], ends: set[int]) -> int | None:
    return next((one.token_id for one in listed if one.token_id not in ends), None)
