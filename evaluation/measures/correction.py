"""The correction triple: what is known at once, what reasoning repairs, and what it spoils (Yang et al., arXiv 2507.18178).

A_fast is the accuracy of direct answers; r_c the share of its errors that the reasoned answer corrects; r_o the share of its
right answers that the reasoned one overturns. An adapter that lifts A_fast and r_o knows more and reasons worse.

A reply without an answer line is neither right nor wrong here and is counted apart: lost form would read as lost reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from adapters.backbone import Backbone
from engine.decoding.budget import MAX_ANSWER_TOKENS
from engine.engine import Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.measures.generation import LEAST_PARSED, MAX_NEW_TOKENS
from evaluation.task import Example, Task, direct_prompt, is_right, reasoning_prompt, trace_of


@dataclass(frozen=True)
class Correction:
    """Value: reasoned answer right minus direct answer right (1, 0 or -1); NaN where one of the two has no answer line.

    Not measurable under a profile that writes an answer line in less than 95 % of its direct or of its reasoned answers.

    Parts: `fast`, `slow` (right), `fast_parsed`, `slow_parsed` (an answer line was written).
    """

    name: str = "correction"
    version: int = 3
    unit: str = "reasoned minus direct accuracy"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        asked = [(direct_prompt(e), MAX_ANSWER_TOKENS) for e in examples] + [
            (reasoning_prompt(e), MAX_NEW_TOKENS) for e in examples
        ]
        written = engine.complete(
            [GenerationRequest(backbone.chat_ids(text), profile, max_new_tokens=limit, temperature=0.0) for text, limit in asked]
        )
        count = len(examples)
        parsed = tuple(float(trace_of(completion.text).answer is not None) for completion in written)
        right = tuple(float(is_right(task, e, done.text)) for e, done in zip([*examples, *examples], written, strict=True))
        parts = {"fast": right[:count], "slow": right[count:], "fast_parsed": parsed[:count], "slow_parsed": parsed[count:]}
        reason = _lost_form("the adapter" if profile else "the backbone", parts)
        known = [
            not reason and bool(fast and slow) for fast, slow in zip(parts["fast_parsed"], parts["slow_parsed"], strict=True)
        ]
        changes = [after - before for before, after in zip(parts["fast"], parts["slow"], strict=True)]
        values = [change if is_known else math.nan for change, is_known in zip(changes, known, strict=True)]
        return Readings.of(self, task, examples, values, parts, reason=reason)

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """The triple of both sides, None under a side that is not measurable, and the share of items without an answer line."""
        found: dict[str, float | None] = {}
        for side, readings in (("base", base), ("adapted", adapted)):
            own = UNKNOWN if readings.reason else triple(readings)
            found |= {f"{side}_{name}": value for name, value in asdict(own).items()}
            found[f"{side}_unparsed"] = 1 - len(_parsed_pairs(readings)) / len(readings.values)
        return found


@dataclass(frozen=True)
class Triple:
    """Over the items with both answers. `corrected` and `overturned` are None where nothing was to be corrected or overturned."""

    fast_accuracy: float | None
    corrected: float | None
    overturned: float | None


UNKNOWN = Triple(None, None, None)


def triple(readings: Readings) -> Triple:
    pairs = _parsed_pairs(readings)
    wrong = [slow for fast, slow in pairs if not fast]
    right = [slow for fast, slow in pairs if fast]
    return Triple(
        len(right) / len(pairs) if pairs else None,
        sum(wrong) / len(wrong) if wrong else None,
        1 - sum(right) / len(right) if right else None,
    )


def _parsed_pairs(readings: Readings) -> list[tuple[float, float]]:
    """Whether the direct and the reasoned answer are right, of the items that have both."""
    rows = zip(*(readings.parts[name] for name in ("fast", "slow", "fast_parsed", "slow_parsed")), strict=True)
    return [(fast, slow) for fast, slow, *parsed in rows if all(parsed)]


def _lost_form(who: str, parts: Mapping[str, Sequence[float]]) -> str:
    """Why these answers show their form and not what is reasoned; empty when they do not."""
    for kind, written in (("direct", parts["fast_parsed"]), ("reasoned", parts["slow_parsed"])):
        if sum(written) < LEAST_PARSED * len(written):
            return (
                f"{who} writes an answer line in {sum(written):.0f} of its {len(written)} {kind} answers, not in "
                f"{LEAST_PARSED:.0%} of them, and lost form would read as lost reasoning"
            )
    return ""
