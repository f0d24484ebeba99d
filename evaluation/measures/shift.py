"""Shift robustness: what is kept of the accuracy in distribution out of it (DataAlchemy, Zhao et al., arXiv 2508.01191).

RD_s = accuracy on the twins under shift s / accuracy on the originals; the change is RD_s(adapted) - RD_s(base): an adapter that
is worse everywhere alike loses accuracy, and no robustness. Right is what is right in every step, greedily written; twins are
judged by their own problem, on the completion's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

from adapters.backbone import Backbone
from engine.engine import Completion, Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.shifts import shifts_of
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, reasoning_prompt
from evaluation.tasks.generated import GeneratedTask

# Above chance, and no chain is right by chance. A ratio to fewer originals says nothing; fewer twins cannot show a loss.
LEAST_ORIGINALS, LEAST_TWINS = 0.25, 0.10
_COUNTED = "_counted_"  # before a shift's name: 1 where it belongs to the value, 0 where not, the same for every item


@dataclass(frozen=True)
class ShiftRobustness:
    """Mean of RD_s over the shifts that the task can undergo, or over those that are named, and that the backbone can show.

    A shift under which the backbone is right on less than 10 % of the twins has next to nothing to lose, and would only thin the
    loss under the others: it is left out on both sides. The backbone alone decides that, so that an adapter that falls to the
    floor under a shift does not rid itself of it; a profile's values are over those shifts once they stand `beside` the
    backbone's, and over all before.

    A ratio of means has no values by item: an item's value is its part in the linearised ratio (delta method),
    RD + (twin - RD * original) / accuracy. Their mean is the ratio itself and a paired interval of them is the ratio's, over all
    items that were read and not over some of them. Parts, 1 or 0: `original`, and each shift's twin by the shift's name.
    """

    shifts: tuple[str, ...] = ()
    version: int = 3
    unit: str = "share of the accuracy in distribution"

    @property
    def name(self) -> str:
        return "_".join(("shift_robustness", *self.shifts))

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        offered = shifts_of(task) if isinstance(task, GeneratedTask) else {}
        chosen = {name: offered[name] for name in self.shifts or offered if name in offered}
        nothing = (nan,) * len(examples)
        if not isinstance(task, GeneratedTask) or not chosen:
            known = f"it has {', '.join(offered)}" if offered else "only a generated task has a twin of every problem"
            reason = f"{task.name} cannot be shifted by {', '.join(self.shifts) or 'anything'}: {known}"
            return Readings.of(self, task, examples, nothing, reason=reason)
        asked = [(task, example) for example in examples]
        asked += [(twins, twins.example(example.id)) for twins in chosen.values() for example in examples]
        written = engine.complete([_request(backbone, profile, example) for _, example in asked])
        right = [_right(*question, completion) for question, completion in zip(asked, written, strict=True)]
        rows = [right[start : start + len(examples)] for start in range(0, len(right), len(examples))]
        parts = dict(zip(("original", *chosen), rows, strict=True))
        accuracy = _mean(rows[0])
        if accuracy < LEAST_ORIGINALS:
            reason = (
                f"{profile or 'the backbone'} is right on {accuracy:.0%} of the problems of {task.name} as they are, and a share "
                f"of that can be told from {LEAST_ORIGINALS:.0%} on; what is lost there already is seen by `generation`"
            )
            return Readings.of(self, task, examples, nothing, parts, reason=reason)
        counted = [name for name in chosen if profile is not None or _mean(parts[name]) >= LEAST_TWINS]
        parts |= {f"{_COUNTED}{name}": [float(name in counted)] * len(examples) for name in chosen}
        if not counted:
            reason = f"the backbone is right on less than {LEAST_TWINS:.0%} of the twins under {', '.join(chosen)}: none to lose"
            return Readings.of(self, task, examples, nothing, parts, reason=reason)
        return Readings.of(self, task, examples, _mean_kept(parts, counted), parts)

    def beside(self, base: Readings, adapted: Readings) -> Readings:
        """The adapted values over the shifts that count on the base side."""
        counted = {name: part for name, part in base.parts.items() if name.startswith(_COUNTED)}
        shifts = [name.removeprefix(_COUNTED) for name, part in counted.items() if part[0]]
        readable = not base.reason and not adapted.reason
        values = tuple(_mean_kept(adapted.parts, shifts)) if readable else adapted.values
        return replace(adapted, values=values, parts={**adapted.parts, **counted})

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """By shift: RD of both sides, and the 95 % interval of the change (of each shift alone, and they are many).

        The interval is None where the backbone is right on less than 10 % of the twins: such a shift is left out of the value.
        """
        if base.reason or adapted.reason:
            return {}
        found: dict[str, float | None] = {}
        for name in (part.removeprefix(_COUNTED) for part in base.parts if part.startswith(_COUNTED)):
            sides = [share_kept(side.parts["original"], side.parts[name]) for side in (base, adapted)]
            change = paired_change(sides[0], sides[1], base.clusters)
            shows = base.parts[f"{_COUNTED}{name}"][0]
            found |= {f"{name}_base": _mean(sides[0]), f"{name}_adapted": _mean(sides[1])}
            found |= {f"{name}_low": change.low if shows else None, f"{name}_high": change.high if shows else None}
        return found


def share_kept(originals: Sequence[float], twins: Sequence[float]) -> tuple[float, ...]:
    """Values by item, whose mean is (mean of the twins) / (mean of the originals). The originals' mean is not 0."""
    accuracy = _mean(originals)
    ratio = sum(twins) / sum(originals)
    return tuple(ratio + (twin - ratio * original) / accuracy for original, twin in zip(originals, twins, strict=True))


def _mean_kept(parts: Mapping[str, Sequence[float]], shifts: Sequence[str]) -> list[float]:
    kept = [share_kept(parts["original"], parts[name]) for name in shifts]
    return [_mean(item) for item in zip(*kept, strict=True)]


def _request(backbone: Backbone, profile: str | None, example: Example) -> GenerationRequest:
    prompt, gold = backbone.chat_ids(reasoning_prompt(example)), backbone.encode(example.chain)
    # A longer chain is not to fail for want of room: where it does not fit at all, the engine says so.
    room = max(len(gold) + 1, min(max(MAX_NEW_TOKENS, 2 * len(gold)), backbone.context_length - len(prompt)))
    return GenerationRequest(prompt, profile, max_new_tokens=room, temperature=0.0)


def _right(task: GeneratedTask, example: Example, completion: Completion) -> float:
    return float(task.check(example, completion.text).all_right)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
