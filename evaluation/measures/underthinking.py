"""Underthinking: wrong answers whose trace had the right one and left it (Wang et al. 2025, arXiv 2501.18585, section 3).

The paper's score is the mean over the wrong items of 1 - T^/T: T tokens in all, T^ up to the end of the first correct thought; it
is 0 for an item without one. Here a thought is correct when the answer forced at its end is right, so that no judge is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.decoding.budget import WrittenTrace, force_answers, ids_within, write_traces
from engine.engine import Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.task import Example, Task, is_right_answer, reasoning_prompt

# What signals that a thought is left for another, at the beginning of a line or sentence: the paper's and CyclicReflex's words.
SWITCH = re.compile(r"(alternatively|another|but|hmm|however|let me|maybe|perhaps|wait)\b", re.IGNORECASE)
_STEP_END = re.compile(r"\n+\s*|(?<=[.!?])[ \t]+")


@dataclass(frozen=True)
class Underthinking:
    """Minus the share of the trace that is written after its right answer was left; 0 is none, -1 the worst.

    An item that is right at its end has 0. One whose forced answer is right nowhere is NaN: it has no right thought to leave, and
    a model that can do nothing must not look steadfast. Every step (line or sentence) ends a thought; `by_switch` counts only
    those before a switch word, as the paper does, of which small models write few.

    Parts: `right`; of the wrong items (else NaN) `score`, the paper's, 0 where no thought is right, `by_switch`, and `left`, 1
    where a thought was right; `switches_per_1000_tokens`, `trace_tokens`, `cut` (the trace did not end within its budget).
    """

    max_trace_tokens: int = MAX_NEW_TOKENS
    name: str = "underthinking"
    version: int = 1
    unit: str = "minus the share of the trace after a right answer"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        requests = [GenerationRequest(backbone.chat_ids(reasoning_prompt(e)), profile, temperature=0.0) for e in examples]
        traces = write_traces(engine, backbone, requests, self.max_trace_tokens)
        answers = force_answers(engine, backbone, requests, traces)
        right = [is_right_answer(task, example, answer.text) for example, answer in zip(examples, answers, strict=True)]
        thoughts = [(item, offset) for item, trace in enumerate(traces) if not right[item] for offset in thought_ends(trace.text)]
        before = [_before(backbone, traces[item], offset) for item, offset in thoughts]
        forced = force_answers(engine, backbone, [requests[item] for item, _ in thoughts], before)
        lasted: dict[int, list[tuple[int, bool]]] = {item: [] for item in range(len(examples))}  # tokens, at a switch
        for (item, offset), trace, answer in zip(thoughts, before, forced, strict=True):
            if is_right_answer(task, examples[item], answer.text):
                lasted[item].append((len(trace.ids), bool(SWITCH.match(traces[item].text, offset))))
        rows = [_row(trace, right[item], lasted[item]) for item, trace in enumerate(traces)]
        return Readings.of(
            self,
            task,
            examples,
            [0.0 if row["right"] else -row["score"] if row["left"] else math.nan for row in rows],
            {name: [row[name] for row in rows] for name in rows[0]},
            reason="" if any(row["right"] or row["left"] for row in rows) else "no forced answer is right anywhere in a trace",
        )


def thought_ends(text: str) -> list[int]:
    """Where steps end and another follows, as offsets of that next one's first character."""
    return [end for found in _STEP_END.finditer(text) if text[: found.start()].strip() and text[(end := found.end()) :].strip()]


def _before(backbone: Backbone, trace: WrittenTrace, offset: int) -> WrittenTrace:
    ids = ids_within(backbone, trace.ids, trace.text[:offset])
    return WrittenTrace(ids, backbone.decode(ids))


def _row(trace: WrittenTrace, right: bool, lasted: Sequence[tuple[int, bool]]) -> dict[str, float]:
    total, wrong = len(trace.ids), not right
    starts = [0, *thought_ends(trace.text)]
    switches = sum(bool(SWITCH.match(trace.text, start)) for start in starts)

    def score(ends: Sequence[int]) -> float:
        return 1 - min(ends) / total if ends else 0.0

    return {
        "right": float(right),
        "score": score([tokens for tokens, _ in lasted]) if wrong else math.nan,
        "by_switch": score([tokens for tokens, at_switch in lasted if at_switch]) if wrong else math.nan,
        "left": float(bool(lasted)) if wrong else math.nan,
        "switches_per_1000_tokens": 1000 * switches / total if total else math.nan,
        "trace_tokens": float(total),
        "cut": float(not trace.has_ended),
    }
