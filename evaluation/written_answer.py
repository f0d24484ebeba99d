"""Answers as they are written: whether the first one is right, and how many tokens were spent on the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.cap_curve import written_point
from evaluation.measure import Measure, Readings
from evaluation.task import Example, Task


@dataclass(frozen=True)
class WrittenAnswer:
    """1 where the first answer of the greedy reply is right. `also` is said at the end of the user's turn.

    Parts: `tokens`, all that were written, the answer's among them.
    """

    max_new_tokens: int = 128
    also: str = ""
    name: str = "written_answer"
    version: int = 1
    unit: str = "share right"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        point = written_point(engine, backbone, profile, task, examples, self.max_new_tokens, self.also)
        return Readings.of(self, task, examples, point.right, {"tokens": point.tokens})


if TYPE_CHECKING:
    _: Measure = WrittenAnswer()
