"""A promotion: the gate of a published version, and the ledger's entry where it passes. It never overrides one that does not."""

from __future__ import annotations

import io

from pydantic import JsonValue
from rich.console import Console

from service.commands.releases import gate_and_promote
from service.jobs.process import Telling
from service.jobs.record import Job
from service.settings import Settings


def promotion(job: Job, settings: Settings, tell: Telling) -> dict[str, JsonValue]:
    asked = job.request
    budget, seen = asked.get("time_budget_s"), asked.get("expected_head")
    done = gate_and_promote(
        str(asked["release"]),
        str(asked["reason"]),
        override=False,
        time_budget_s=float(budget) if isinstance(budget, int | float) else None,
        gate_file=None,
        home=settings.home.absolute(),
        tracking_uri=settings.tracking_uri,
        console=Console(file=Lines(tell), markup=False, width=140),
        expected_head=seen if isinstance(seen, int) else None,
    )
    sentence = done.report.sentence if done.waiting is None else f"{done.report.sentence} {done.waiting}"
    tell(sentence)
    return {
        "release": str(asked["release"]),
        "promoted": done.promoted,
        "proposed": done.waiting is not None,
        "verdict": done.report.verdict,
        "sentence": sentence,
    }


class Lines(io.StringIO):
    """What is written line by line, as events."""

    def __init__(self, tell: Telling) -> None:
        super().__init__()
        self._tell, self._begun = tell, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._tell(line.strip())
        return len(text)
