"""The gate's statistics: anytime-valid bounds on a mean paired difference, by betting.

One unit of evidence is one cluster's mean difference (adapted minus base), divided by the largest difference possible,
so that it lies in [-1, 1]. Against the hypothesis "the mean is at most mu" a gambler stakes a fraction f of the wealth on
each unit; wealth multiplies by 1 + f ((x + 1) / (mu + 1) - 1). Under the hypothesis wealth is a non-negative
supermartingale, so it ever reaches 1 / alpha with probability at most alpha (Ville): one may look after every round, as
often as one likes, with nothing to spend. No variance is estimated, so no small sample looks certain: n differences of
exactly 0 bound a loss no tighter than the rule of three does. The stakes are a fixed mixture, so wealth does not depend on
the order of the units. (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024.)
Units of different strata (families, a generator's wordings) may have different means: the bound is then about their
average in the proportions drawn, because a product of wealths is largest when the means are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# The stakes: large ones win on families that change nothing, small ones on families that change a little both ways.
_FRACTIONS: Floats = np.array([0.1, 0.25, 0.5, 0.75, 0.95])
_STEPS = 40  # halvings: a bound is exact to 1e-12


@dataclass(frozen=True)
class PairedItems:
    """Values of the same items under the backbone and under the adapted model, higher is better.

    Items of one cluster (a passage, a category) count once, as their mean; all of them are drawn in one round.
    `fixed_clusters` says that the clusters are a fixed set that every round draws from (a generator's wordings and lengths),
    not a sample of many: then every item is its own unit, and the clusters only show where a loss sits.
    """

    base: Floats
    adapted: Floats
    clusters: tuple[str, ...]
    fixed_clusters: bool = False

    @classmethod
    def of(cls, base: ArrayLike, adapted: ArrayLike, clusters: ArrayLike, *, fixed_clusters: bool = False) -> PairedItems:
        names = tuple(str(name) for name in np.asarray(clusters).tolist())
        return cls(np.asarray(base, dtype=np.float64), np.asarray(adapted, dtype=np.float64), names, fixed_clusters)

    def __post_init__(self) -> None:
        if not len(self.base) == len(self.adapted) == len(self.clusters):
            raise ValueError(
                "Paired items have one base value, one adapted value and one cluster each, but got "
                f"{len(self.base)}, {len(self.adapted)} and {len(self.clusters)}. Score both models on the same items."
            )
        if not (np.isfinite(self.base).all() and np.isfinite(self.adapted).all()):
            raise ValueError("Paired values must be finite, but NaN or infinity is among them. Leave out items without a score.")

    def __len__(self) -> int:
        return len(self.base)

    def joined(self, other: PairedItems) -> PairedItems:
        return PairedItems(
            np.concatenate([self.base, other.base]),
            np.concatenate([self.adapted, other.adapted]),
            self.clusters + other.clusters,
            self.fixed_clusters and other.fixed_clusters,
        )

    @property
    def differences(self) -> Floats:
        return self.adapted - self.base

    @property
    def cluster_means(self) -> Mapping[str, float]:
        """The mean difference of every cluster."""
        return dict(
            zip(np.unique(np.asarray(self.clusters, dtype=str)).tolist(), self._means(self.differences).tolist(), strict=True)
        )

    @property
    def units(self) -> Floats:
        """The independent differences that the bounds are made from."""
        return self.by_unit(self.differences)

    def by_unit(self, values: Floats) -> Floats:
        """One value a unit from one an item: the cluster's mean, or the item's own where the clusters are a fixed set."""
        return values if self.fixed_clusters else self._means(values)

    def _means(self, values: Floats) -> Floats:
        names, inverse = np.unique(np.asarray(self.clusters, dtype=str), return_inverse=True)
        sums = np.bincount(inverse, weights=values, minlength=len(names))
        return np.asarray(sums / np.bincount(inverse, minlength=len(names)), dtype=np.float64)


def log_wealth(units: Floats, mean: float, span: float = 1.0) -> float:
    """Log of the wealth won against "the mean difference is at most `mean`"; at least log(1 / alpha) refutes it."""
    return _mixture(_growth(units, mean, span).sum(axis=1))


def lower_bound(units: Floats, alpha: float, span: float = 1.0) -> float:
    """The mean is above this with confidence 1 - alpha, at every look at once; -span when there is no unit."""
    span = _span(units, span)
    low, high = -span, span
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if log_wealth(units, middle, span) >= -np.log(alpha):
            low = middle
        else:
            high = middle
    return low


def upper_bound(units: Floats, alpha: float, span: float = 1.0) -> float:
    return -lower_bound(-units, alpha, span)


def units_needed(units: Floats, mean: float, alpha: float, span: float = 1.0) -> int | None:
    """How many more units like these refute "the mean is at most `mean`"; None when more of the same never would."""
    if len(units) == 0:
        return None
    totals = _growth(units, mean, _span(units, span)).sum(axis=1)
    if _mixture(totals) >= -np.log(alpha):
        return 0
    if totals.max() <= 0:
        return None
    low, high = 1.0, 2.0
    while _mixture(totals * high) < -np.log(alpha):
        low, high = high, high * 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _mixture(totals * middle) < -np.log(alpha) else (low, middle)
    return max(1, int(np.ceil(len(units) * (high - 1) - 1e-9)))


def _growth(units: Floats, mean: float, span: float) -> Floats:
    """Log growth of every stake (rows) on every unit (columns)."""
    span = _span(units, span)
    room = mean / span + 1
    if room <= 0:
        return np.full((len(_FRACTIONS), len(units)), np.inf)
    return np.log1p(_FRACTIONS[:, None] * ((units[None, :] / span + 1) / room - 1))


def _mixture(totals: Floats) -> float:
    return float(np.logaddexp.reduce(totals) - np.log(len(totals)))


def _span(units: Floats, span: float) -> float:
    """A difference beyond the expected span widens it, which makes every stake smaller: a unit can cost no more than all."""
    return max(span, float(np.abs(units).max(initial=0.0)))
