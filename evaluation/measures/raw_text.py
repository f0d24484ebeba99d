"""What the model expects of plain text, without a chat template: how likely a passage is, and which of two endings it prefers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.task import Example, Task


@dataclass(frozen=True)
class TextLikelihood:
    """Mean natural-log probability per token of the passage's second part after its first."""

    name: str = "text_likelihood"
    version: int = 1
    unit: str = "nats per token"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        found = engine.score([_after(backbone, example.question, example.answer) for example in examples], profile)
        return Readings.of(
            self,
            task,
            examples,
            tuple(sum(tokens) / len(tokens) for tokens in found),
            {"num_tokens": tuple(float(len(tokens)) for tokens in found)},
        )


@dataclass(frozen=True)
class PairPreference:
    """1 when the right ending is likelier than every other, by the sum of log-probabilities (minimal pairs; a tie is wrong)."""

    name: str = "pair_preference"
    version: int = 1
    unit: str = "share right"

    @staticmethod
    def value(margin: float) -> float:
        return float(margin > 0)

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        asked: list[Continuation] = []
        for example in examples:
            if example.choices is None or len(example.choices) < 2:
                raise DataError(
                    f"Pair preference needs two or more choices, but example {example.id!r} of {task.name!r} has none. Add some."
                )
            rivals = [choice for choice in example.choices if choice != example.answer]
            asked.extend(_after(backbone, example.question, ending) for ending in (example.answer, *rivals))
        found = iter(engine.score(asked, profile))
        margins = []
        for example in examples:
            sums = [sum(next(found)) for _ in example.choices or ()]
            margins.append(sums[0] - max(sums[1:]))
        return Readings.of(
            self,
            task,
            examples,
            tuple(self.value(margin) for margin in margins),
            {"margin": tuple(margins)},
        )


@dataclass(frozen=True)
class PairMargin(PairPreference):
    """By how many nats the right ending is likelier: moves before the preference turns, so that few items show a drift."""

    name: str = "pair_margin"
    unit: str = "nats"

    @staticmethod
    def value(margin: float) -> float:
        return margin


def _after(backbone: Backbone, beginning: str, ending: str) -> Continuation:
    """Prompt and continuation meet at a space, which belongs to the continuation's first token."""
    joint = ending if ending.startswith((" ", "\n")) or beginning.endswith("\n") else f" {ending}"
    return Continuation(tuple(backbone.encode(beginning.rstrip(" "))), tuple(backbone.encode(joint)))
