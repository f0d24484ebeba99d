"""Paired changes with intervals that respect clusters, and seeds where an adapter was fitted several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.bootstrap import (
    FEW_CLUSTERS,
    Bounds,
    Floats,
    Method,
    alike,
    all_alike,
    bounds,
    over_seeds,
    percentiles,
    with_zero,
)


@dataclass(frozen=True)
class Score:
    mean: float
    stderr: float
    n: int


@dataclass(frozen=True)
class PairedChange:
    """Adapted minus backbone on the same items: 0 is no loss, below 0 a loss, in the measure's own unit."""

    mean: float
    low: float
    high: float
    stderr: float  # of the mean, by the clusters or items that the interval is made from; NaN where they show no spread
    n: int
    num_clusters: int
    confidence: float
    per_item: tuple[float, ...]
    method: Method = "none"  # of the interval

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_change(
    base: Sequence[float],
    adapted: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
    drawn_clusters: bool = False,
) -> PairedChange:
    """The mean difference with a bootstrap interval; differences that are all 0 give exactly (0, 0, 0).

    With 10 clusters or more, whole clusters are drawn and the interval is BCa (Efron 1987) of the ratio of sums; percentiles
    where BCa is undefined (clusters that all changed alike). `method` says which.

    Below that, a bootstrap of clusters has too few distinct draws to cover; such clusters are a generator's fixed templates, all
    of them present, so items are drawn within each template (stratified). What the templates stand for is then not part of the
    uncertainty. Differences are stretched about their template's mean by sqrt(n / (n - 1)), without which few items a template
    would look more certain than they are (Rao and Wu 1988). A template of one item shows no spread: all such are one stratum
    (collapsed strata, Cochran 1977, 5A.12). Where the items of any stratum still changed alike, they are drawn from all templates
    together: that two items of a template were both lost does not say that its next one will be.

    A bootstrap knows only what it saw. Items (clusters, from 10 on) that all changed alike have the bound of Clopper and Pearson;
    where fewer than 6 of them moved (5 at 90 %) the interval is never clear of 0, since no exact test of their signs would be. A
    single item that changed bounds nothing: its interval is infinite.

    `drawn_clusters` says that clusters are no templates but draws of many (the story sets of a seed, the passages of a file), so
    that another set of them is part of the uncertainty however few there are: below 30 the interval is Student's t with the
    clusters less one as degrees of freedom (Cameron and Miller 2015), and a single cluster that changed bounds nothing.
    """
    difference = differences(base, adapted, clusters)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    found = bounds(difference, index, confidence, draws, np.random.default_rng(seed), drawn_clusters)
    return _change(difference, found, len(names), confidence)


def change_over_seeds(
    base: Sequence[float],
    adapted: Mapping[str, Sequence[float]],
    clusters: Sequence[str],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> PairedChange:
    """The mean difference of an adapter fitted under several seeds, with an interval that covers another seed and other items.

    `adapted` holds, by seed, the values of the same items. A draw takes seeds, then clusters, each with replacement; all seeds of
    a draw share its clusters, since their items' luck is one luck (the pigeonhole bootstrap, Owen 2007). Seeds that fell apart
    widen it, which an interval over items alone never shows. `per_item` is the mean over the seeds.
    """
    if len(adapted) < 2:
        raise ValueError(
            f"A change over seeds needs two seeds or more, but got {len(adapted)}. Fit the recipe under another seed, or use "
            "paired_change."
        )
    difference_SN = np.array([differences(base, values, clusters) for values in adapted.values()])
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = over_seeds(difference_SN, index, draws, np.random.default_rng(seed))
    per_item = difference_SN.mean(0)
    moved = int(np.count_nonzero(per_item if len(names) < FEW_CLUSTERS else np.bincount(index, per_item)))
    found = with_zero(percentiles(drawn, confidence, "percentile over seeds"), moved, confidence)
    if per_item.any() and alike(difference_SN):
        found = all_alike(float(per_item.mean()), moved, confidence)
    return _change(per_item, found, len(names), confidence)


def _change(per_item: Floats, found: Bounds, num_clusters: int, confidence: float) -> PairedChange:
    ends, mean = (found.low, found.high, found.stderr), float(per_item.mean())
    return PairedChange(mean, *ends, len(per_item), num_clusters, confidence, tuple(per_item.tolist()), found.method)


def differences(base: Sequence[float], adapted: Sequence[float], clusters: Sequence[str]) -> Floats:
    """Adapted minus base, item by item; ValueError where they are not of the same items."""
    if not len(base) == len(adapted) == len(clusters):
        raise ValueError(
            f"Paired values have one base value, one adapted value and one cluster each, but got {len(base)}, {len(adapted)} "
            f"and {len(clusters)}. Read both on the same items."
        )
    if not len(base):
        raise ValueError("A change needs at least one item, but got none. Check the split and the number of items.")
    return np.asarray(adapted, dtype=np.float64) - np.asarray(base, dtype=np.float64)


def ratio(
    of: Sequence[float], to: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of `to` over mean of `of` on the same items, with a 95 % interval (percentile bootstrap over clusters).

    Below 10 clusters items are drawn: of a single cluster every draw would be the same, and its interval a point. The ratio of
    two noisy means has heavy tails: where draws put the first mean at 0 or below, an end is infinite.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    index = index if index.max() + 1 >= FEW_CLUSTERS else np.arange(len(index))
    below, above = np.bincount(index, np.asarray(of)), np.bincount(index, np.asarray(to))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(below), (draws, len(below)))
    lower, upper = below[chosen].sum(1), above[chosen].sum(1)
    drawn = np.where(lower > 0, upper / np.where(lower > 0, lower, 1.0), np.copysign(np.inf, upper))
    low, high = (float(edge) for edge in np.quantile(drawn, [0.025, 0.975], method="nearest"))
    return float(above.sum() / below.sum()), low, high


def score(values: Sequence[float]) -> Score:
    """Mean with its standard error over items."""
    array = np.asarray(values, dtype=float)
    stderr = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")
    return Score(float(array.mean()), stderr, len(array))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def upper_limit(successes: int, n: int, confidence: float = 0.95) -> float:
    """The largest share that so few successes leave open, one-sided and exact (Clopper and Pearson 1934); 1 of no item."""
    if n == 0:
        return 1.0
    interval = stats.binomtest(successes, n, alternative="less").proportion_ci(confidence, method="exact")
    return float(interval.high)


@dataclass(frozen=True)
class Flips:
    """Shares of items whose answer went from right to wrong (`negative`) and from wrong to right.

    The change of the accuracy is positive minus negative: a net of zero may hide both.
    """

    negative: float
    positive: float
    p_value: float  # exact McNemar: that both directions are equally likely


def flips(base: Sequence[float], adapted: Sequence[float]) -> Flips:
    before, after = np.asarray(base) > 0.5, np.asarray(adapted) > 0.5
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p_value = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Flips(lost / len(before), won / len(before), p_value)


def agreement(base: Sequence[float], adapted: Sequence[float]) -> float:
    """Share of items that got the same answer, right or wrong; 1 less it is the churn."""
    return float(np.mean(np.asarray(base) == np.asarray(adapted)))
