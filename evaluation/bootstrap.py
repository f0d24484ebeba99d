"""Bootstrap intervals of a mean difference: over clusters, within fixed strata, and over seeds as well."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
# How bounds were made. "exact": nothing changed; "all alike": all changed by the same; "none": one item, which bounds nothing.
Method = Literal[
    "exact", "none", "all alike", "BCa", "percentile", "stratified percentile", "percentile over seeds", "t over clusters"
]

FEW_CLUSTERS = 10
FEW_DRAWN = 30  # below it a bootstrap of clusters covers less than it says, and Student's t does not

# D draws, N items, S seeds; an index says of every item which cluster (or stratum) it belongs to


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float
    method: Method
    stderr: float = math.nan  # of the mean, by what was drawn; NaN where nothing shows a spread


def bounds(
    difference_N: Floats, index_N: Indices, confidence: float, draws: int, rng: np.random.Generator, drawn_clusters: bool = False
) -> Bounds:
    """What the data allow: nothing to draw, items within few fixed clusters, few drawn clusters, or many clusters."""
    if not difference_N.any():
        return Bounds(0.0, 0.0, "exact", 0.0)
    if len(difference_N) == 1 or (drawn_clusters and not index_N.any()):
        return Bounds(-np.inf, np.inf, "none")
    few = not drawn_clusters and index_N.max() + 1 < FEW_CLUSTERS
    units_N: Indices = np.arange(len(difference_N)) if few else index_N
    sums, sizes = np.bincount(units_N, difference_N), np.bincount(units_N)
    if alike(sums / sizes):
        return all_alike(float(difference_N.mean()), len(sums), confidence)
    strata_N = strata(difference_N, index_N)
    if drawn_clusters and len(sums) < FEW_DRAWN:
        found = _of_few_drawn(difference_N, index_N, confidence)
    elif few and strata_N.any():
        found = _within_strata(difference_N, strata_N, confidence, draws, rng)
    else:
        found = _of_clusters(difference_N, units_N, confidence, draws, rng)
    return with_zero(found, int(np.count_nonzero(sums)), confidence)


def with_zero(found: Bounds, moved: int, confidence: float) -> Bounds:
    """Widened to hold 0 where fewer items or clusters moved than can show a direction: below 6, at 95 %.

    Exact McNemar and every other test of signs gives m that moved the same way 2 / 2^m at best, and a bootstrap, which draws only
    what it saw, would call three of them clear.
    """
    if 2.0 ** (1 - moved) <= 1 - confidence:
        return found
    return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))


def over_seeds(difference_SN: Floats, index_N: Indices, draws: int, rng: np.random.Generator) -> Floats:
    """Means of draws of seeds, then of clusters. All seeds of a draw share its clusters: the same items were read under each."""
    num_seeds = len(difference_SN)
    off_S1 = difference_SN.mean(1, keepdims=True) - difference_SN.mean()
    # Three seeds drawn with replacement show two thirds of their variance: their means are stretched to show it all.
    stretched_SN = difference_SN + (np.sqrt(num_seeds / (num_seeds - 1)) - 1) * off_S1
    few = index_N.max() + 1 < FEW_CLUSTERS
    strata_N = strata(difference_SN.mean(0), index_N)
    taken_DN = _items_drawn(strata_N, draws, rng) if few else _clusters_drawn(index_N, draws, rng)
    seeds_DS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), draws)
    means: Floats = ((seeds_DS @ stretched_SN) * taken_DN).sum(1) / (num_seeds * taken_DN.sum(1))
    return means


def percentiles(drawn: Floats, confidence: float, method: Method, stderr: float | None = None) -> Bounds:
    """The standard error is the deviation of the draws where no formula gives it."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Bounds(float(low), float(high), method, float(drawn.std(ddof=1)) if stderr is None else stderr)


def _of_clusters(difference_N: Floats, index_N: Indices, confidence: float, draws: int, rng: np.random.Generator) -> Bounds:
    """BCa of the ratio of sums; percentiles where BCa is undefined, which is where all clusters changed alike."""
    sums, sizes = np.bincount(index_N, difference_N), np.bincount(index_N)

    def mean(sums: Floats, sizes: Floats, axis: int = -1) -> Floats:
        found: Floats = sums.sum(axis=axis) / sizes.sum(axis=axis)
        return found

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        done = stats.bootstrap(
            (sums, sizes), mean, paired=True, n_resamples=draws, batch=500, confidence_level=confidence, method="BCa", rng=rng
        )
    low, high = map(float, done.confidence_interval)
    stderr = standard_error(difference_N, index_N)
    if np.isfinite([low, high]).all():
        return Bounds(low, high, "BCa", stderr)
    return percentiles(done.bootstrap_distribution, confidence, "percentile", stderr)


def standard_error(difference_N: Floats, index_N: Indices) -> float:
    """Of the mean, robust to items of one cluster that go together (CR1). Two clusters or more."""
    sums = np.bincount(index_N, difference_N - difference_N.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(difference_N))


def all_alike(change: float, count: int, confidence: float) -> Bounds:
    """Of so many items or clusters that all changed by the same: as many may do otherwise as would still have stayed unseen.

    At least the share (tail)^(1 / count) changes like these (Clopper and Pearson 1934), and the others at worst as much the other
    way, so that it is clear of 0 just where exact McNemar is.
    """
    least = 1 - unseen_share(count, confidence)
    low, high = sorted((change, change * (2 * least - 1)))
    return Bounds(low, high, "all alike")


def unseen_share(count: int, confidence: float = 0.95) -> float:
    """The largest share of items that may do what none of so many did, by a two-sided interval (Clopper and Pearson 1934)."""
    return 1 - float(((1 - confidence) / 2) ** (1 / count))


def _of_few_drawn(difference_N: Floats, index_N: Indices, confidence: float) -> Bounds:
    low, high = stats.t.interval(confidence, int(index_N.max()))
    mean, stderr = float(difference_N.mean()), standard_error(difference_N, index_N)
    return Bounds(mean + float(low) * stderr, mean + float(high) * stderr, "t over clusters", stderr)


def _within_strata(difference_N: Floats, strata_N: Indices, confidence: float, draws: int, rng: np.random.Generator) -> Bounds:
    sizes = np.bincount(strata_N)
    means_N = (np.bincount(strata_N, difference_N) / np.maximum(sizes, 1))[strata_N]
    widen_N = np.sqrt(sizes / np.maximum(sizes - 1, 1))[strata_N]
    stretched_N = means_N + (difference_N - means_N) * widen_N
    drawn = _items_drawn(strata_N, draws, rng) @ stretched_N / len(difference_N)
    # What the stretched draws spread by: the sum of n s^2 over the strata, the variance of each with n - 1.
    stderr = float(np.linalg.norm(stretched_N - means_N)) / len(difference_N)
    return percentiles(drawn, confidence, "stratified percentile", stderr)


def strata(difference_N: Floats, index_N: Indices) -> Indices:
    """What items are drawn within: their clusters, or all of them where a cluster's items all changed alike.

    Few items that agree do not make their template certain: drawn within it they would have no share in the uncertainty.
    """
    strata_N = _collapsed(index_N)
    any_alike = any(alike(difference_N[strata_N == name]) for name in np.unique(strata_N))
    return np.zeros_like(index_N) if any_alike else strata_N


def alike(changes: Floats) -> bool:
    return bool(np.ptp(changes) < 1e-9)


def _collapsed(index_N: Indices) -> Indices:
    """Strata of one item are joined in one, and a last of its kind joins the smallest other, so that each shows a spread."""
    sizes = np.bincount(index_N)
    alone_N = sizes[index_N] == 1
    if alone_N.sum() == 1 and len(index_N) > 1:
        smallest = np.where(sizes > 1, sizes, sizes.max() + 1).argmin()
        return np.where(alone_N, smallest, index_N)
    return np.where(alone_N, len(sizes), index_N)


def _items_drawn(strata_N: Indices, draws: int, rng: np.random.Generator) -> Floats:
    """How often each draw takes each item (D, N), where every stratum keeps its number of items."""
    taken_DN = np.zeros((draws, len(strata_N)))
    for name in np.unique(strata_N):
        members = np.flatnonzero(strata_N == name)
        taken_DN[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return taken_DN


def _clusters_drawn(index_N: Indices, draws: int, rng: np.random.Generator) -> Floats:
    """How often each draw takes each item (D, N), where the items of a cluster go together."""
    count = int(index_N.max()) + 1
    taken_DN: Floats = rng.multinomial(count, np.full(count, 1 / count), draws)[:, index_N].astype(np.float64)
    return taken_DN
