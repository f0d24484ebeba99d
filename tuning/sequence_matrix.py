"""The numbers of a sequence with their intervals: the matrix of every policy under other draws of the items.

A draw takes the clusters of a column (items, where there are fewer than 10 clusters) with replacement, and the same ones at every
stage and under every policy, so that stages and policies are compared on the same items. Intervals are percentiles, at 95 %. They
cover other items and not another fit: seeds of the fits are no part of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.bootstrap import FEW_CLUSTERS, Floats
from evaluation.continual import ContinualMatrix

DRAWS = 2000
SHARES = "share"  # units that a mean over families can be taken of

# D draws (the first is of every item once), S stages and the backbone before them, N items, T domains, F families


class Interval(NamedTuple):
    """None: a single stage has no earlier and no later domain, or no family is counted in shares."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Numbers:
    """`values[name]`, [D]: the number under each draw. Empty where it is not defined."""

    values: Mapping[str, Floats]

    def interval(self, name: str) -> Interval:
        return _interval(self.values[name])

    def minus(self, other: Numbers, name: str) -> Interval:
        """Of the same draws: how much more than the other's."""
        return _interval(self.values[name] - other.values[name])


NAMES = {
    "average_accuracy": "mean over the domains after the last stage",
    "average_gain": "the same, less the backbone's",
    "backward_transfer": "after the last stage less after its own, over the earlier domains",
    "forgetting": "the best after any stage less after the last, over the earlier domains",
    "forward_transfer": "before its own stage less the backbone's, over the later domains",
    "learning_accuracy": "after its own stage, over the domains",
    "reasoning": "mean over the families of the change after the last stage",
}


@dataclass(frozen=True)
class PolicyMatrix:
    """One policy in one order."""

    matrix: ContinualMatrix
    numbers: Numbers
    routing: Sequence[Mapping[str, float]]  # of each stage, on prompts that the router had not seen; empty where nothing routes

    @classmethod
    def of(cls, documents: Sequence[Mapping[str, Any]]) -> PolicyMatrix:
        """From the stages' documents, in order."""
        matrix = ContinualMatrix.of(documents)
        rows = [{row["task"]: row["items"] for row in document["rows"]} for document in documents]
        domains = np.stack([_drawn(column.task, rows) for column in matrix.domains], axis=-1)
        counted = [column.task for column in matrix.retention if column.unit.startswith(SHARES)]
        families = np.stack([_drawn(task, rows) for task in counted], axis=-1) if counted else None
        routing = [document["routing"] for document in documents if "routing" in document]
        return cls(matrix, Numbers(_numbers(domains, families)), routing)

    @property
    def reasoning(self) -> tuple[float | None, ...]:
        """Column 0: the mean score over the families counted in shares, of the backbone and after each stage."""
        counted = [place for place, column in enumerate(self.matrix.retention) if column.unit.startswith(SHARES)]
        scores = self.matrix.scores[:, len(self.matrix.domains) :]
        return tuple(float(row[counted].mean()) if counted else None for row in scores)

    def as_dict(self) -> dict[str, Any]:
        told = {name: self.numbers.interval(name)._asdict() for name in NAMES}
        counts = {column.task: column.num_items for column in (*self.matrix.domains, *self.matrix.retention)}
        found = {"reasoning": list(self.reasoning), "numbers": told, "items": counts, "routing": [*map(dict, self.routing)]}
        return {**self.matrix.as_dict(), **found, "transfer": asdict(self.matrix.transfer)}


def _drawn(task: str, rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Means of the backbone and of every stage under each draw, [D, S]."""
    first = rows[0][task]
    values_SN = _by_item(first["ids"], [first, *(row[task] for row in rows)])
    known_N = np.isfinite(values_SN).all(0)
    clusters = np.array(first["clusters"])[known_N]
    _, index_N = np.unique(clusters, return_inverse=True)
    if not len(index_N) or index_N.max() + 1 < FEW_CLUSTERS:
        index_N = np.arange(len(index_N))
    count = int(index_N.max()) + 1
    # By the column's items, and never by the policy: the same draws everywhere.
    seed = int.from_bytes(hashlib.sha256("/".join([task, *first["ids"]]).encode()).digest()[:8], "big")
    taken = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS)
    weights_DN = np.concatenate([np.ones((1, count)), taken])[:, index_N]
    means: Floats = weights_DN @ values_SN[:, known_N].T / weights_DN.sum(1, keepdims=True)
    return means


def _by_item(ids: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Floats:
    """[S, N]: the first of the items' backbone, then what each stage made of them; NaN where it is not measurable."""
    found = [[np.nan if value is None else value for value in items[0]["base"]]]
    for one in items[1:]:
        by_id = dict(zip(one["ids"], one["adapted"], strict=True))
        found.append([np.nan if by_id[name] is None else by_id[name] for name in ids])
    return np.array(found, dtype=np.float64)


def _numbers(domains_DST: Floats, families_DSF: Floats | None) -> dict[str, Floats]:
    """GEM's transfers and Chaudhry's forgetting, as in evaluation.continual, under every draw at once."""
    count, last_DT, empty = domains_DST.shape[2], domains_DST[:, -1], np.empty(0)
    own_DT = np.stack([domains_DST[:, place + 1, place] for place in range(count)], axis=-1)
    before_DT = np.stack([domains_DST[:, place, place] for place in range(count)], axis=-1)
    several = count > 1
    best_DT = domains_DST[:, 1:-1, :-1].max(1) if several else empty
    return {
        "average_accuracy": last_DT.mean(1),
        "average_gain": last_DT.mean(1) - domains_DST[:, 0].mean(1),
        "backward_transfer": (last_DT - own_DT)[:, :-1].mean(1) if several else empty,
        "forgetting": (best_DT - last_DT[:, :-1]).mean(1) if several else empty,
        "forward_transfer": (before_DT - domains_DST[:, 0])[:, 1:].mean(1) if several else empty,
        "learning_accuracy": own_DT.mean(1),
        "reasoning": empty if families_DSF is None else (families_DSF[:, -1] - families_DSF[:, 0]).mean(1),
    }


def _interval(drawn_D: Floats) -> Interval:
    if not len(drawn_D):
        return Interval(None, None, None)
    low, high = np.quantile(drawn_D[1:], [0.025, 0.975])
    return Interval(float(drawn_D[0]), float(low), float(high))
