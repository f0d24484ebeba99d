"""An engine whose steps a test takes one by one, in its own thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.engine import Completion, GenerationRequest
from engine.row import Row
from engine.torch_engine import TorchEngine


@dataclass
class Clock:
    """Time that goes on only when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stepped:
    """What the step loop does, without its thread. A request without a seed draws with 0."""

    engine: TorchEngine
    rows: list[Row] = field(default_factory=list)

    def submit(self, *requests: GenerationRequest) -> list[Row]:
        rows = [self.engine._row(request, request.seed or 0) for request in requests]
        self.engine._scheduler.submit(*rows)
        self.rows.extend(rows)
        return rows

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine._scheduler.step()

    def run(self) -> None:
        while self.engine._scheduler.is_busy:
            self.step()

    def write(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        rows = self.submit(*requests)
        self.run()
        return [row.completion() for row in rows]
