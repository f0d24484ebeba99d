"""Who writes the trace and who reads it: dependence fell because the traces are worse, or because they are ignored.

The design {base trace, adapted trace} x {base reader, adapted reader} over the three faithfulness measures whose base side is the
backbone reading its own traces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.evaluate import LEAST_PAIRED, UNKNOWN, Row
from evaluation.statistics import PairedChange, paired_change

BOTH, READS, WRITES = "faithfulness", "faithfulness_base_traces", "faithfulness_external"


@dataclass(frozen=True)
class FourCells:
    """Mean dependence in each cell, writer first, and what changing one of the two does; on the items measurable in all four."""

    base_base: float
    base_adapted: float  # the adapter reads what the backbone wrote
    adapted_base: float  # the backbone reads what the adapter wrote
    adapted_adapted: float
    reading: PairedChange  # of the backbone's traces: below 0, the adapter ignores them more
    writing: PairedChange  # by the backbone's reading: below 0, the adapter's traces are worth less
    interaction: PairedChange  # what the two together do beyond their sum
    not_measurable: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is undefined is None; a change is its mean and the ends of its interval."""
        cells = (self.base_base, self.base_adapted, self.adapted_base, self.adapted_adapted)
        names = ("base_base", "base_adapted", "adapted_base", "adapted_adapted")
        effects = {"reading": self.reading, "writing": self.writing, "interaction": self.interaction}
        return {
            **{name: None if self.not_measurable else cell for name, cell in zip(names, cells, strict=True)},
            **{name: None if self.not_measurable else [one.mean, one.low, one.high] for name, one in effects.items()},
            "not_measurable": self.not_measurable or None,
        }

    def __str__(self) -> str:
        if self.not_measurable:
            return f"not measurable: {self.not_measurable}"
        return "\n".join(
            (
                "              base reads   adapter reads",
                f"base trace    {self.base_base:10.3f}   {self.base_adapted:13.3f}   reading {self.reading}",
                f"adapted trace {self.adapted_base:10.3f}   {self.adapted_adapted:13.3f}   writing {self.writing}",
            )
        )


def four_cells(rows: Iterable[Row]) -> FourCells:
    """Joins the rows of `faithfulness`, `faithfulness_base_traces` and `faithfulness_external` over the same items."""
    found = {row.planned.measure.name: row for row in rows}
    if missing := [name for name in (BOTH, READS, WRITES) if name not in found]:
        raise ValueError(f"The four cells need the measures {BOTH}, {READS} and {WRITES}, but {', '.join(missing)} is missing.")
    cells = [found[BOTH].base, found[READS].adapted, found[WRITES].adapted, found[BOTH].adapted]
    if len({cell.item_ids for cell in cells}) > 1:
        raise ValueError("The four cells are paired, but their rows hold different items. Read all three measures on the same.")
    shared = [
        i for i, values in enumerate(zip(*(cell.values for cell in cells), strict=True)) if not any(map(math.isnan, values))
    ]
    reason = next((cell.reason for cell in cells if cell.reason), "")
    if not reason and len(shared) < min(LEAST_PAIRED, len(cells[0].values)):
        reason = f"{len(shared)} of {len(cells[0].values)} items are measurable in all four cells, not {LEAST_PAIRED}"
    if reason:
        return FourCells(math.nan, math.nan, math.nan, math.nan, UNKNOWN, UNKNOWN, UNKNOWN, reason)
    neither, reads, writes, both = ([cell.values[i] for i in shared] for cell in cells)
    clusters = [cells[0].clusters[i] for i in shared]
    expected = [r + w - n for r, w, n in zip(reads, writes, neither, strict=True)]
    return FourCells(
        _mean(neither),
        _mean(reads),
        _mean(writes),
        _mean(both),
        reading=paired_change(neither, reads, clusters),
        writing=paired_change(neither, writes, clusters),
        interaction=paired_change(expected, both, clusters),
    )


def four_cells_by_task(rows: Iterable[Row]) -> dict[str, FourCells]:
    """Of the tasks that all three measures were read on."""
    tasks: dict[str, dict[str, Row]] = {}
    for row in rows:
        tasks.setdefault(row.planned.task.name, {})[row.planned.measure.name] = row
    return {task: four_cells(found.values()) for task, found in tasks.items() if found.keys() >= {BOTH, READS, WRITES}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
