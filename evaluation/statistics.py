"""Paired changes with intervals that respect clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEW_CLUSTERS = 10


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
    stderr: float  # of the mean: between clusters, or over the items where all are of one cluster
    n: int
    num_clusters: int
    confidence: float
    per_item: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_change(
    base: Sequence[float],
    adapted: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> PairedChange:
    """The mean difference with a bootstrap interval; differences that are all 0 give exactly (0, 0, 0).

    With 10 clusters or more, whole clusters are drawn (percentile bootstrap of the ratio of sums). Below that, a bootstrap of
    clusters has too few distinct draws to cover; such clusters are a generator's fixed templates, all of them present, so items
    are drawn within each template instead (stratified). What the templates stand for is then not part of the uncertainty.
    """
    if not len(base) == len(adapted) == len(clusters):
        raise ValueError(
            f"Paired values have one base value, one adapted value and one cluster each, but got {len(base)}, {len(adapted)} "
            f"and {len(clusters)}. Read both on the same items."
        )
    if not len(base):
        raise ValueError("A change needs at least one item, but got none. Check the split and the number of items.")
    difference = np.asarray(adapted, dtype=float) - np.asarray(base, dtype=float)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    mean = float(difference.mean())
    if not difference.any():
        low = high = 0.0
    else:
        rng = np.random.default_rng(seed)
        drawn = (
            _stratified(difference, index, draws, rng)
            if len(names) < FEW_CLUSTERS
            else _by_cluster(difference, index, draws, rng)
        )
        tail = (1 - confidence) / 2
        low, high = (float(edge) for edge in np.quantile(drawn, [tail, 1 - tail]))
    stderr = _stderr(difference, index)
    return PairedChange(mean, low, high, stderr, len(difference), len(names), confidence, tuple(difference.tolist()))


def ratio(
    of: Sequence[float], to: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of `to` over mean of `of` on the same items, with a 95 % interval (percentile bootstrap over clusters).

    The ratio of two noisy means has heavy tails: where draws put the first mean at 0 or below, an end is infinite.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    below, above = np.bincount(index, np.asarray(of)), np.bincount(index, np.asarray(to))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(below), (draws, len(below)))
    lower, upper = below[chosen].sum(1), above[chosen].sum(1)
    drawn = np.where(lower > 0, upper / np.where(lower > 0, lower, 1.0), np.copysign(np.inf, upper))
    low, high = (float(edge) for edge in np.quantile(drawn, [0.025, 0.975], method="nearest"))
    return float(above.sum() / below.sum()), low, high


def _stderr(difference: np.ndarray, index: np.ndarray) -> float:
    """Robust to items of one cluster that go together (CR1); NaN for a single item."""
    if not index.any():
        return score(difference.tolist()).stderr
    sums = np.bincount(index, difference - difference.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(difference))


def _by_cluster(difference: np.ndarray, index: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    sums, sizes = np.bincount(index, difference), np.bincount(index)
    chosen = rng.integers(0, len(sums), (draws, len(sums)))
    means: np.ndarray = sums[chosen].sum(1) / sizes[chosen].sum(1)
    return means


def _stratified(difference: np.ndarray, index: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    total = np.zeros(draws)
    for name in range(index.max() + 1):
        values = difference[index == name]
        total += values[rng.integers(0, len(values), (draws, len(values)))].sum(1)
    return total / len(difference)


def score(values: Sequence[float]) -> Score:
    """Mean with its standard error over items."""
    array = np.asarray(values, dtype=float)
    stderr = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")
    return Score(float(array.mean()), stderr, len(array))


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Flips:
    """Shares of items whose answer went from right to wrong (`negative`) and from wrong to right."""

    negative: float
    positive: float
    p_value: float  # exact McNemar: that both directions are equally likely


def flips(base: Sequence[float], adapted: Sequence[float]) -> Flips:
    before, after = np.asarray(base) > 0.5, np.asarray(adapted) > 0.5
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p_value = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Flips(lost / len(before), won / len(before), p_value)
