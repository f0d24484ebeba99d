"""What an evaluation will cost, told before it begins: every measure is tried on a few items first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.errors import PromptTooLong
from evaluation.errors import DataError, JudgeUnavailable, MissingPackage
from evaluation.evaluate import Planned
from evaluation.tasks.generated import GeneratedTask

TRIED = 8  # items; of fewer, a measure that wants answers above chance may stop before it costs anything


@dataclass(frozen=True)
class Cost:
    """Tokens are those that go through a forward; seconds are of this machine as it is now."""

    tokens: float = 0.0
    seconds: float = 0.0

    def times(self, count: float) -> Cost:
        return Cost(self.tokens * count, self.seconds * count)


@dataclass(frozen=True)
class Forecast:
    """Of one item, by measure and kind of task."""

    by_item: dict[tuple[str, bool], Cost]

    def of(self, planned: Planned) -> Cost:
        return self.by_item[_kind(planned)].times(len(planned.examples))

    def all(self, plan: Iterable[Planned]) -> Cost:
        costs = [self.of(planned) for planned in plan]
        return Cost(sum(cost.tokens for cost in costs), sum(cost.seconds for cost in costs))


def forecast(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    plan: Sequence[Planned],
    on_tried: Callable[[int, int], None] = lambda done, of: None,
) -> Forecast:
    """One trial a measure and kind of task. Raises what would end the evaluation too: no judge, a missing package."""
    kinds: dict[tuple[str, bool], Planned] = {}
    for planned in plan:
        kinds.setdefault(_kind(planned), planned)
    found: dict[tuple[str, bool], Cost] = {}
    for kind, planned in kinds.items():
        found[kind] = _tried(engine, backbone, profile, planned)
        on_tried(len(found), len(kinds))
    return Forecast(found)


def _kind(planned: Planned) -> tuple[str, bool]:
    return planned.measure.name, isinstance(planned.task, GeneratedTask)


def _tried(engine: Engine, backbone: Backbone, profile: str | None, planned: Planned) -> Cost:
    examples = planned.examples[:TRIED]
    began, before = time.monotonic(), engine.stats().forward_tokens
    try:
        planned.measure.read(engine, backbone, profile, planned.task, examples)
    except (JudgeUnavailable, MissingPackage):
        raise
    except (DataError, PromptTooLong):  # where it decides something, the evaluation itself says so
        return Cost()
    spent = Cost(engine.stats().forward_tokens - before, time.monotonic() - began)
    return spent.times(1 / len(examples))
