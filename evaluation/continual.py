"""Several domains one after the other: what each stage did to the domains before it, to those to come, and to reasoning.

R[i, j] is the score on column j after stage i; row 0 is the frozen backbone, adapter off. Columns are the domains in the order of
their fitting, then everything else that was guarded. A stage is scored as it is served (stacked, merged, routed): frozen adapters
that are loaded again for their own domain forget nothing by construction, and a matrix of those says nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import IncompleteMatrix

Floats = NDArray[np.float64]
Document = Mapping[str, Any]  # what `graftline evaluate --json` prints

LEAST_ABOVE_CHANCE = 0.1  # of the backbone, below which a share of it is noise over noise
# What each number is a mean over, for T stages; the released code of GEM divides both transfers by T, a zero included.
DENOMINATORS = {
    "average_accuracy": "T domains",
    "backward_transfer": "T - 1 earlier domains",
    "forward_transfer": "T - 1 later domains",
    "forgetting": "T - 1 earlier domains",
    "learning_accuracy": "T domains",
    "anytime_accuracy": "T stages, each over the domains so far",
}


@dataclass(frozen=True)
class Cell:
    """A column's score after a stage, and how its items moved from the backbone's. None: the measure does not tell."""

    score: float
    change: float  # paired, with its 95 % interval
    low: float | None
    high: float | None
    negative_flips: float | None  # share of items that the backbone had right and the stage has wrong
    positive_flips: float | None
    agreement: float | None  # share of items with the backbone's answer, right or wrong; 1 less it is the churn


@dataclass(frozen=True)
class Column:
    task: str
    measure: str
    unit: str
    chance: float | None  # None: a likelihood, which has no chance level
    num_items: int
    backbone: float
    cells: tuple[Cell, ...]  # by stage

    def share_kept(self, stage: int) -> float | None:
        """(R[i, k] - chance) / (R[0, k] - chance) after stage i, from 1; None where the backbone is not above chance by 0.1."""
        if self.chance is None or self.backbone - self.chance <= LEAST_ABOVE_CHANCE:
            return None
        return (self.cells[stage - 1].score - self.chance) / (self.backbone - self.chance)


@dataclass(frozen=True)
class Transfer:
    """Over the domains only. None for a single stage, which has no earlier and no later domain."""

    average_accuracy: float
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    learning_accuracy: float
    anytime_accuracy: float


@dataclass(frozen=True)
class ContinualMatrix:
    """`domains[j]` is what stage j was fitted on. Every cell is there and finite."""

    stages: tuple[str, ...]
    domains: tuple[Column, ...]
    retention: tuple[Column, ...]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> ContinualMatrix:
        """From evaluations in the order of the stages. A subject is a stage; its first document is of its own domain.

        A domain is a row of role domain, a guarded column one of role protected; what is only reported is left out.
        """
        by_stage: dict[str, dict[tuple[str, str], Document]] = {}
        own: dict[str, tuple[str, str]] = {}
        for document in documents:
            rows = by_stage.setdefault(document["subject"], {})
            for row in document["rows"]:
                key = (row["task"], row["measure"])
                if row["role"] == "domain":
                    own.setdefault(document["subject"], key)
                if row["role"] != "report":
                    _refuse_other(rows.setdefault(key, row), row, document["subject"])
        _refuse_backbones({document["backbone"] for document in documents})
        _refuse_repeated(own, by_stage)
        keys = dict.fromkeys((*own.values(), *(key for rows in by_stage.values() for key in rows)))
        columns = [_column(key, by_stage) for key in keys]
        _refuse_mixed(columns[: len(own)])
        return cls(tuple(by_stage), tuple(columns[: len(own)]), tuple(columns[len(own) :]))

    @property
    def scores(self) -> Floats:
        """R, of shape (T + 1, domains + guarded columns)."""
        columns = [[column.backbone, *(cell.score for cell in column.cells)] for column in (*self.domains, *self.retention)]
        return np.array(columns, dtype=np.float64).T

    @property
    def transfer(self) -> Transfer:
        """Lopez-Paz and Ranzato 2017 (GEM), with row 0 as the reference of forward transfer; Chaudhry et al. 2018 for forgetting.

        ACC = mean_j R[T, j]; BWT = mean_{j<T} R[T, j] - R[j, j]; FWT = mean_{j>1} R[j-1, j] - R[0, j];
        forgetting = mean_{j<T} max_{1<=i<T} R[i, j] - R[T, j]; LA = mean_j R[j, j].
        """
        count = len(self.stages)
        base, *after = self.scores[:, :count]
        last = after[-1]
        several = count > 1
        return Transfer(
            average_accuracy=_mean(last),
            backward_transfer=_mean([last[j] - after[j][j] for j in range(count - 1)]) if several else None,
            forward_transfer=_mean([after[j - 1][j] - base[j] for j in range(1, count)]) if several else None,
            forgetting=_mean([max(row[j] for row in after[:-1]) - last[j] for j in range(count - 1)]) if several else None,
            learning_accuracy=_mean([after[j][j] for j in range(count)]),
            anytime_accuracy=_mean([_mean(row[: i + 1]) for i, row in enumerate(after)]),
        )

    def as_dict(self) -> dict[str, Any]:
        def column(one: Column) -> dict[str, Any]:
            return {**asdict(one), "share_kept": [one.share_kept(stage) for stage in range(1, len(self.stages) + 1)]}

        return {
            "stages": list(self.stages),
            "domains": [column(one) for one in self.domains],
            "retention": [column(one) for one in self.retention],
            "scores": self.scores.tolist(),
            "transfer": asdict(self.transfer),
            "denominators": DENOMINATORS,
        }


def _column(key: tuple[str, str], by_stage: Mapping[str, Mapping[tuple[str, str], Document]]) -> Column:
    task, measure = key
    cells: list[Cell] = []
    first: Document | None = None
    earliest = next(iter(by_stage))
    for stage, rows in by_stage.items():
        row = rows.get(key)
        if row is None:
            raise IncompleteMatrix(
                f"Every stage is scored on every column, but {stage!r} has no {measure} of {task!r}. "
                f"Add the file of `graftline evaluate {stage} --domain {task} --json`, or the one that protects it."
            )
        if not all(_is_number(row[name]) for name in ("base", "adapted", "change")):
            raise IncompleteMatrix(
                f"Every cell holds a number, but {measure} of {task!r} is not measurable after {stage!r}: "
                f"{row.get('not_measurable') or 'its score is not finite'}. Leave that column out of every stage."
            )
        first = first or row
        if (row["base"], row["n"], row["unit"]) != (first["base"], first["n"], first["unit"]):
            raise IncompleteMatrix(
                f"A column has one score of the backbone, on the same items at every stage, but {measure} of {task!r} has "
                f"{first['base']} on {first['n']} items and, beside {stage!r}, {row['base']} on {row['n']}. "
                "Evaluate all stages with the same --items."
            )
        _refuse_other_items(first, row, repr(earliest), repr(stage))
        cells.append(_cell(row))
    assert first is not None
    return Column(task, measure, first["unit"], first.get("chance"), first["n"], first["base"], tuple(cells))


def _cell(row: Document) -> Cell:
    said = row.get("summary") or {}
    flips = (said.get(name) for name in ("negative_flips", "positive_flips", "agreement"))
    return Cell(row["adapted"], row["change"], row["low"], row["high"], *flips)


def _refuse_other(known: Document, row: Document, stage: str) -> None:
    if (known["base"], known["adapted"], known["n"]) != (row["base"], row["adapted"], row["n"]):
        raise IncompleteMatrix(
            f"A stage has one score a column, but {stage!r} has {known['adapted']} and {row['adapted']} for {row['measure']} of "
            f"{row['task']!r}. Give one file a stage and domain, all of the same --items."
        )
    _refuse_other_items(known, row, repr(stage), f"another file of {stage!r}")


def _refuse_other_items(known: Document, row: Document, of_known: str, of_row: str) -> None:
    """Scores of other items are no change of a stage, however alike they are."""
    before, after = (Counter(one["items"]["ids"]) for one in (known, row))
    if before != after:
        only = sorted((before - after) or (after - before))
        raise IncompleteMatrix(
            f"A column is of the same items everywhere, but {row['measure']} of {row['task']!r} is of others in {of_row} than in "
            f"{of_known} ({len(only)} of {before.total()} differ, such as {only[0]!r}). Evaluate all stages on the same data, "
            "with the same --items."
        )


def _refuse_backbones(names: set[str]) -> None:
    if len(names) > 1:
        raise IncompleteMatrix(
            f"All stages stand on one frozen backbone, but the files name {', '.join(sorted(names))}. Evaluate on one of them."
        )


def _refuse_repeated(own: Mapping[str, tuple[str, str]], stages: Mapping[str, object]) -> None:
    if without := [stage for stage in stages if stage not in own]:
        raise IncompleteMatrix(f"Every stage has a domain of its own, but {without[0]!r} has none. Evaluate it with --domain.")
    for index, (stage, key) in enumerate(own.items()):
        if key in list(own.values())[:index]:
            raise IncompleteMatrix(
                f"Every stage is fitted on a domain of its own, but {stage!r} and an earlier one both begin with {key[0]!r}. "
                "Give the file of a stage's own domain before its other files."
            )


def _refuse_mixed(domains: Sequence[Column]) -> None:
    if len(kinds := {(column.measure, column.unit) for column in domains}) > 1:
        listed = ", ".join(sorted(f"{measure} ({unit})" for measure, unit in kinds))
        raise IncompleteMatrix(f"Domains are averaged in one unit, but these are in {listed}. Measure all by the same.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float] | Floats) -> float:
    return float(np.mean(values))
