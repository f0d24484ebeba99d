"""Latent reasoning: what CoT-decoding finds that greedy decoding does not, where nobody asks for steps (arXiv 2402.10200).

An adapter that has lost the ability shrinks what CoT-decoding finds; one that only learnt to show it at once shrinks the gap by
raising what greedy finds. So both accuracies stand beside the gap, with the change of what CoT-decoding finds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.decoding.cot_decoding import CoTDecoding, Decoded
from engine.engine import Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, direct_prompt, is_right_answer, said
from evaluation.tasks.generated import GeneratedTask

# An arithmetic step, or a word that ties one statement to another.
_STEP = re.compile(
    r"\d\s*[-+*/x×÷]\s*\d+\s*=|\b(because|first|hence|next|since|so|then|therefore|thus)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LatentReasoning:
    """CoT-decoding right minus greedy right (1, 0 or -1) under the direct prompt. Greedy is the branch of the likeliest token.

    Parts: `decoded` and `greedy` (right), `margin` (mean over the branches that answer; NaN without one), `greedy_margin`,
    `stepped` (share of the branches that hold a step: one of the problem's, an arithmetic one, or a connective).
    """

    policy: CoTDecoding = CoTDecoding()
    name: str = "latent_reasoning"
    version: int = 1
    unit: str = "CoT-decoded minus greedy accuracy"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        requests = [GenerationRequest(backbone.chat_ids(direct_prompt(example)), profile) for example in examples]
        found = self.policy.complete(engine, backbone, requests)
        rows = [_row(task, example, decoded) for example, decoded in zip(examples, found, strict=True)]
        # An adapter that finds nothing has lost what the backbone finds; a backbone that finds nothing has nothing to lose.
        nothing = profile is None and not any(row["decoded"] for row in rows)
        values = [math.nan if nothing else row["decoded"] - row["greedy"] for row in rows]
        parts = {name: [row[name] for row in rows] for name in rows[0]}
        reason = "the backbone's CoT-decoding is right on no item" if nothing else ""
        return Readings.of(self, task, examples, values, parts, reason=reason)

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Change of either accuracy with its 95 % interval."""
        found: dict[str, float | None] = {}
        for name in ("decoded", "greedy"):
            change = paired_change(base.parts[name], adapted.parts[name], base.clusters)
            found |= {f"{name}_change": change.mean, f"{name}_low": change.low, f"{name}_high": change.high}
        return found


def _row(task: Task, example: Example, decoded: Decoded) -> dict[str, float]:
    margins = [branch.margin for branch in decoded.answered]
    return {
        "decoded": float(is_right_answer(task, example, decoded.vote(said))),
        "greedy": float(is_right_answer(task, example, decoded.greedy.answer)),
        "margin": sum(margins) / len(margins) if margins else math.nan,
        "greedy_margin": decoded.greedy.margin,
        "stepped": sum(holds_step(task, example, branch.trace) for branch in decoded.branches) / len(decoded.branches),
    }


def holds_step(task: Task, example: Example, trace: str) -> bool:
    if isinstance(task, GeneratedTask) and any(task.check(example, trace).valid):
        return True
    return bool(_STEP.search(trace))
