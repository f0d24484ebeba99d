"""An X-ray of an answer: what each step of its chain tells about it, and what it becomes when the chain is broken there.

The definitions are those of the measures (evaluation/staircase.py). Every reading is two rows of the engine, which wait for their
turn like a completion's, cost their tokens, and end with the request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pydantic import JsonValue

from adapters.backbone import Backbone
from engine.decoding.answer import ANSWER_CUE, same_answer
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from evaluation.staircase import FLOOR, Frame, Ids, cuts, encoded, filler, gains, joined, leaking_step, level, states
from evaluation.task import Example, trace_of
from service.errors import ApiError
from service.writing import Writing

Break = Literal["cut", "filled", "swapped"]
UNIT = "nats per answer token"


@dataclass(frozen=True)
class Chain:
    """The steps of a reply and the answer that they are read for, as texts and as tokens."""

    steps: tuple[str, ...]
    answer: str
    frame: Frame
    answer_ids: Ids

    @classmethod
    def of(cls, backbone: Backbone, prompt: Ids, reply: str, reasoning: str = "", answer: str | None = None) -> Chain:
        """ApiError where there is no answer, or no step before it.

        `reasoning`: what stood between the backbone's markers; empty: the steps stand in the reply, before `Answer:`.
        """
        found, frame = trace_of(reply), Frame.of(backbone)
        steps, said, has_cue = found.steps, answer or found.answer, True
        if reasoning:
            has_cue = found.answer is not None
            steps, frame = trace_of(reasoning).steps, _between_markers(backbone, prompt, has_cue)
            said = said or next((line.strip() for line in reply.splitlines() if line.strip()), None)
        if not said:
            message = f"An X-ray reads an answer, which stands behind {ANSWER_CUE!r} in a reply, but this one has none."
            raise ApiError(400, f"{message} Give it as answer, or ask for such a line.", "no_answer", "reply")
        if not steps:
            message = "An X-ray reads the steps before an answer, one a line, but this reply has none. Ask for steps."
            raise ApiError(400, message, "no_steps", "reply")
        return cls(steps, said, frame, tuple(backbone.encode(f" {said}" if has_cue else said)))


def _between_markers(backbone: Backbone, prompt: Ids, has_cue: bool) -> Frame:
    markers = backbone.markers
    if markers is None:
        message = "This backbone writes no chain between markers, but reasoning was given. Put the steps into reply."
        raise ApiError(400, message, "invalid_value", "reasoning")
    opening = "" if backbone.begins_chain(prompt) else f"{markers.begin}\n"
    closing = f"{markers.end}\n\n{ANSWER_CUE if has_cue else ''}"
    return Frame(tuple(backbone.encode(opening)), tuple(backbone.encode(closing)))


@dataclass(frozen=True)
class Point:
    """The chain in one reading: `kept` of its own steps, then what the break puts in the place of the others."""

    kind: Break
    kept: int
    trace: Ids


def points(backbone: Backbone, chain: Chain, other: Sequence[str], kinds: Sequence[Break]) -> list[Point]:
    """The chain cut after every step and whole, since gains are read from that; filled up to its length with tokens that say
    nothing; gone on with as another chain goes on."""
    kept = cuts([encoded(backbone, (step,)) for step in chain.steps])
    found = [Point("cut", count, trace) for count, trace in enumerate(kept)]
    early, whole = list(enumerate(kept[:-1])), len(kept[-1])
    if "filled" in kinds:
        found += [Point("filled", count, (*trace, *filler(backbone, whole - len(trace)))) for count, trace in early]
    if "swapped" in kinds:
        strange = [encoded(backbone, (step,)) for step in other]
        found += [Point("swapped", count, (*trace, *joined(strange[count:]))) for count, trace in early]
    return found


class Row(NamedTuple):
    """What one row of the engine finds out at the point of that place: how likely the answer is, or what is answered instead."""

    place: int
    writes: bool
    request: GenerationRequest


def rows_of(
    usual: GenerationRequest, chain: Chain, broken: Sequence[Point], kinds: Sequence[Break], max_answer_tokens: int
) -> list[Row]:
    """Every point is read; answers are written behind those of the kinds, greedily and without the release's decoding policy.

    `usual` has what all rows share. Of several sets of soft thoughts the first is read.
    """
    plain, rows = replace(usual, temperature=0.0, policy=DecodingPolicy(), chain=0), []
    for place, point in enumerate(broken):
        before = chain.frame.around(point.trace)
        reads = replace(plain, begun_ids=(*before, *chain.answer_ids), max_new_tokens=0, num_prompt_logprobs=0)
        rows.append(Row(place, False, reads))
        if point.kind in kinds:
            rows.append(Row(place, True, replace(plain, begun_ids=before, max_new_tokens=max_answer_tokens, stop=("\n",))))
    return rows


@dataclass(frozen=True)
class Read:
    """What was found at a point."""

    level: float  # of the answer, in nats per token
    text: str  # what is answered instead


async def read(writing: Writing, chain: Chain, rows: Sequence[Row]) -> list[Read]:
    """Of every point, once all rows have ended, which are the requests of the writing."""
    levels, texts = dict[int, float](), {row.place: "" for row in rows}
    async with contextlib.aclosing(writing.deltas()) as deltas:
        async for index, delta in deltas:
            if delta is None:
                continue
            place, writes, _ = rows[index]
            if writes:
                texts[place] += delta.text
            elif delta.prompt:
                levels[place] = level([token.logprob or 0.0 for token in delta.prompt[-len(chain.answer_ids) :]])
    return [Read(levels[place], texts[place].strip()) for place in texts]


def told(
    question: str, chain: Chain, other: Sequence[str], broken: Sequence[Point], kinds: Sequence[Break], found: Sequence[Read]
) -> dict[str, JsonValue]:
    """The X-ray as the wire has it."""
    staircase = [one.level for point, one in zip(broken, found, strict=True) if point.kind == "cut"]
    leak = leaking_step(chain.steps, Example("", question, chain.answer))
    steps: list[JsonValue] = [
        {"index": place + 1, "text": step, "information_gain": gain, "log_probability": after, "states_answer": place >= leak}
        for place, (step, gain, after) in enumerate(zip(chain.steps, gains(staircase), staircase[1:], strict=True))
    ]
    breaks: dict[str, JsonValue] = {}
    for kind in dict.fromkeys(kinds):
        breaks[kind] = [
            {
                "kept": point.kept,
                "log_probability": one.level,
                "answer": one.text,
                "same": same_answer(one.text, chain.answer),
            }
            for point, one in zip(broken, found, strict=True)
            if point.kind == kind
        ]
    return {
        "unit": UNIT,
        "floor": FLOOR,
        "answer": chain.answer,
        "before": staircase[0],
        "after": staircase[-1],
        "information_gain": staircase[-1] - staircase[0],
        "before_it_is_stated": staircase[leak] - staircase[0],
        "steps": steps,
        "breaks": breaks,
        "other_states_answer": states(other, chain.answer) if other else None,
    }
