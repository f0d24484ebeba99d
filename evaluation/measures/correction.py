"""The correction triple: what is known at once, what reasoning repairs, and what it spoils (Yang et al., arXiv 2507.18178).

A_fast is the accuracy of direct answers; r_c the share of its errors that the reasoned answer corrects; r_o the share of its
right answers that the reasoned one overturns. An adapter that lifts A_fast and r_o knows more and reasons worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from adapters.backbone import Backbone
from engine.engine import Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.task import Example, Task, direct_prompt, is_right, reasoning_prompt, trace_of


@dataclass(frozen=True)
class Correction:
    """Value: reasoned answer right minus direct answer right (1, 0 or -1). Parts: fast, slow, fast_parsed, slow_parsed."""

    name: str = "correction"
    version: int = 2
    unit: str = "reasoned minus direct accuracy"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        asked = [(direct_prompt(e), 32) for e in examples] + [(reasoning_prompt(e), MAX_NEW_TOKENS) for e in examples]
        written = engine.complete(
            [GenerationRequest(backbone.chat_ids(text), profile, max_new_tokens=limit, temperature=0.0) for text, limit in asked]
        )
        answers = [trace_of(completion.text).answer for completion in written]
        count = len(examples)
        right = tuple(float(is_right(task, e, done.text)) for e, done in zip([*examples, *examples], written, strict=True))
        fast, slow = right[:count], right[count:]
        return Readings.of(
            self,
            task,
            examples,
            tuple(after - before for before, after in zip(fast, slow, strict=True)),
            {
                "fast": fast,
                "slow": slow,
                "fast_parsed": tuple(float(answer is not None) for answer in answers[:count]),
                "slow_parsed": tuple(float(answer is not None) for answer in answers[count:]),
            },
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """The triple of both sides."""
        sides = {"base": asdict(triple(base)), "adapted": asdict(triple(adapted))}
        return {f"{side}_{name}": value for side, found in sides.items() for name, value in found.items()}


@dataclass(frozen=True)
class Triple:
    """`corrected` and `overturned` are None where there was nothing to correct or to overturn."""

    fast_accuracy: float
    corrected: float | None
    overturned: float | None


def triple(readings: Readings) -> Triple:
    pairs = list(zip(readings.parts["fast"], readings.parts["slow"], strict=True))
    wrong = [slow for fast, slow in pairs if not fast]
    right = [slow for fast, slow in pairs if fast]
    return Triple(
        len(right) / len(pairs),
        sum(wrong) / len(wrong) if wrong else None,
        1 - sum(right) / len(right) if right else None,
    )
