"""A registered name with four versions, and gate reports on them."""

from __future__ import annotations

import numpy as np

from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems

NAME = "medicine"


def report(version: int, lost: float = 0.0) -> GateReport:
    count = 400

    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [str(item) for item in range(count)]
        kept = (np.arange(count) >= lost * count).astype(float)
        gained = PairedItems.of(np.zeros(count), np.ones(count), names)
        return {"icd10": gained, "boxes": PairedItems.of(np.ones(count), kept, names)}

    return run_gate(GateSettings(max_rounds=1), draw, domain="icd10", subject=f"{NAME}@{version}")
