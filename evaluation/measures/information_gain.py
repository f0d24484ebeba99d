"""Information Gain: how much each step tells about the gold answer (Wu et al. 2025, arXiv 2506.02126, section 3).

l_i is the log-probability of the gold answer after i steps, in nats per answer token; the steps of l_t - l_0 telescope, so the
total, the number of steps and the trace's length are always beside the per-step value. The value is the total, less what another
item's trace of like length gives where that is a gain: any text in the right form may make an answer likelier. That a wrong trace
makes the right answer less likely is no reason to add to it. The gain before the step that states the answer stands in the parts:
it is not the value, because a good reader of half a chain answers with the intermediate result.

A gain that fell has two causes that must not be confused: the answer was known before any step (l_0 rose: it was memorised), or
the steps lost their worth (l_t fell). `TwoCauses` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.measures.traces import written
from evaluation.staircase import INFORMATIVE, Frame, cuts, encoded, gains, leaking_step, level, reading, states
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example, Task, reasoning_prompt
from evaluation.tasks.generated import GeneratedTask


@dataclass(frozen=True)
class InformationGain:
    """`scorer`: external reads with the backbone, adapter off; self with the profile. `traces`: own, written greedily; or gold.

    Two questions: does the profile write traces that tell another reader something (external, own), and does it still use a trace
    that it is given (self, gold)? A profile that writes no step gains nothing.

    Parts, in nats per answer token: l_0, l_t, total, per_step, per_token, preleak (before the answer is stated), control (the
    total under a swapped trace of like length), step_1, step_2, ... (each step's own gain); and informative (share of the steps),
    knowledge_index (share of the steps that the task's verifier accepts), num_steps, trace_tokens. Every l_i is at least -5. What
    an item does not have (a third step, a verifier) is NaN.
    """

    scorer: Literal["external", "self"] = "self"
    traces: Literal["own", "gold"] = "gold"
    version: int = 5
    unit: str = "nats per answer token"

    def __post_init__(self) -> None:
        if (self.scorer, self.traces) == ("external", "gold"):
            raise ValueError("The backbone reads gold traces alike under every profile: use traces='own', or scorer='self'.")

    @property
    def name(self) -> str:
        return f"information_gain_{self.scorer}"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if len(examples) < 2:
            raise DataError(
                f"Information gain needs two or more examples, to swap their traces, but {task.name!r} gave {len(examples)}. "
                "Ask for more items."
            )
        traces = written(engine, backbone, profile, examples) if self.traces == "own" else _gold(task, examples)
        partners = swaps(traces, [example.answer for example in examples])
        reader = profile if self.scorer == "self" else None
        right = staircases(engine, backbone, reader, examples, traces)
        wrong = staircases(engine, backbone, reader, examples, [traces[index] for index in partners])
        rows = [_row(backbone, task, *row) for row in zip(examples, traces, right, wrong, strict=True)]
        most = max(len(steps) for steps in traces)
        for row, staircase in zip(rows, right, strict=True):
            gained = gains(staircase)
            row |= {f"step_{number + 1}": gained[number] if number < len(gained) else math.nan for number in range(most)}
        return Readings.of(
            self,
            task,
            examples,
            tuple(row["total"] - max(0.0, row["control"]) for row in rows),
            {name: tuple(row[name] for row in rows) for name in rows[0]},
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Why the gain changed, with 95 % intervals, and the trace's length, without which no gain per step means anything."""
        causes = TwoCauses.of(base, adapted)
        found: dict[str, float | None] = {}
        for name, change in (("l_0", causes.before), ("l_t", causes.after)):
            found |= {f"change_{name}": change.mean, f"change_{name}_low": change.low, f"change_{name}_high": change.high}
        lengths = base.part_mean("trace_tokens"), adapted.part_mean("trace_tokens")
        return found | {"length_ratio": lengths[1] / lengths[0] if lengths[0] else None}


@dataclass(frozen=True)
class TwoCauses:
    """What became of the gold answer's log-probability before any step (l_0) and after all of them (l_t), in nats per token."""

    before: PairedChange
    after: PairedChange

    @classmethod
    def of(cls, base: Readings, adapted: Readings) -> TwoCauses:
        return cls(*(paired_change(base.parts[name], adapted.parts[name], base.clusters) for name in ("l_0", "l_t")))

    @property
    def memorised(self) -> bool:
        """The answer is likelier without any step."""
        return self.before.low > 0

    @property
    def hollowed(self) -> bool:
        """The answer is less likely after all steps."""
        return self.after.high < 0


def staircases(
    engine: Engine, backbone: Backbone, reader: str | None, examples: Sequence[Example], traces: Sequence[Sequence[str]]
) -> list[list[float]]:
    """l_0 .. l_t of every item."""
    frame = Frame.of(backbone)
    asked: list[Continuation] = []
    for example, steps in zip(examples, traces, strict=True):
        prompt, answer = tuple(backbone.chat_ids(reasoning_prompt(example))), tuple(backbone.encode(f" {example.answer}"))
        traces_so_far = cuts([encoded(backbone, (step,)) for step in steps])
        asked.extend(reading(prompt, frame, trace, answer) for trace in traces_so_far)
    found = iter(engine.score(asked, reader))
    return [[level(next(found)) for _ in range(len(steps) + 1)] for steps in traces]


def _gold(task: Task, examples: Sequence[Example]) -> list[tuple[str, ...]]:
    if bare := [example.id for example in examples if not example.steps]:
        raise DataError(
            f"Information gain over gold traces needs rationales, but example {bare[0]!r} of {task.name!r} has none. "
            "Add one, or read the traces that the profile writes."
        )
    return [example.steps for example in examples]


def _row(
    backbone: Backbone, task: Task, example: Example, steps: Sequence[str], right: list[float], wrong: list[float]
) -> dict[str, float]:
    count, leak, gained = len(steps), leaking_step(steps, example), gains(right)
    num_tokens = sum(len(backbone.encode(f"{step}\n")) for step in steps)
    return {
        "l_0": right[0],
        "l_t": right[-1],
        "total": right[-1] - right[0],
        "per_step": (right[-1] - right[0]) / max(1, count),
        "per_token": (right[-1] - right[0]) / max(1, num_tokens),
        "preleak": right[leak] - right[0],
        "control": wrong[-1] - wrong[0] if count else 0.0,
        "informative": sum(gain > INFORMATIVE for gain in gained) / max(1, count),
        "knowledge_index": task.check(example, "\n".join(steps)).validity
        if isinstance(task, GeneratedTask) and count
        else math.nan,
        "num_steps": float(count),
        "trace_tokens": float(num_tokens),
    }


def swaps(traces: Sequence[Sequence[str]], answers: Sequence[str]) -> list[int]:
    """For every item another, of the nearest number of steps, if possible one whose trace does not state this item's answer."""
    partners = []
    for index, (trace, answer) in enumerate(zip(traces, answers, strict=True)):
        others = sorted(
            (other for other in range(len(traces)) if other != index),
            key=lambda other: (abs(len(traces[other]) - len(trace)), (other - index) % len(traces)),
        )
        strange = [other for other in others if not states(traces[other], answer)]
        partners.append((strange or others)[0])
    return partners
