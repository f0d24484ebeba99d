"""Tests of a paired change: whether there is one, whether a loss is within its margin, and several families at once.

"Not significant" is not "not lost": retention is shown by non-inferiority, whose third verdict says that nothing was shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from evaluation.bootstrap import FEW_CLUSTERS
from evaluation.power import items_to_decide
from evaluation.statistics import PairedChange, differences, paired_change

Alternative = Literal["two-sided", "less", "greater"]
Verdict = Literal["pass", "fail", "inconclusive"]


def permutation_p_value(
    base: Sequence[float],
    adapted: Sequence[float],
    clusters: Sequence[str],
    alternative: Alternative = "two-sided",
    seed: int = 0,
    draws: int = 9999,
) -> float:
    """That base and adapted are exchangeable: the signs of whole clusters flip together ("less": the adapted lost).

    Every pattern of signs where there are at most `draws` of them, else so many random ones.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, differences(base, adapted, clusters))
    # A cluster that did not change has no sign to flip; scipy asks for two observations.
    moved = sums[sums != 0]
    done = stats.permutation_test(
        (np.pad(moved, (0, max(0, 2 - len(moved)))),),
        lambda flipped, axis: flipped.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=500,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(done.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values by family (Holm 1979): those at most alpha are harmed, with a chance of at most alpha of any false one.

    The i-th smallest of K is max over j <= i of (K - j + 1) p_j, at most 1. Showing that no family lost needs no correction:
    every one must pass.
    """
    if unknown := [name for name, p_value in p_values.items() if not 0 <= p_value <= 1]:
        raise ValueError(
            f"A p-value is from 0 to 1, but that of {unknown[0]!r} is {p_values[unknown[0]]}. Leave out families without a test."
        )
    names = sorted(p_values, key=p_values.__getitem__)
    factors = np.arange(len(names), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(factors * np.array([p_values[name] for name in names])))
    by_name = dict(zip(names, adjusted.tolist(), strict=True))
    return {name: by_name[name] for name in p_values}


@dataclass(frozen=True)
class NonInferiority:
    """`change.low` and `change.high` are each a one-sided bound at `alpha`."""

    verdict: Verdict
    change: PairedChange
    margin: float
    alpha: float
    items_needed: int | None  # in all, to decide where it is inconclusive; None where it is decided, or none would decide

    def __str__(self) -> str:
        said = f"{self.change.mean:+.4f} (at least {self.change.low:+.4f}) against a margin of {self.margin:g}: {self.verdict}"
        return f"{said}, {self.items_needed} items would decide" if self.items_needed else said


def non_inferiority(
    base: Sequence[float],
    adapted: Sequence[float],
    clusters: Sequence[str],
    margin: float,
    alpha: float = 0.05,
    span: float = 1.0,
    seed: int = 0,
) -> NonInferiority:
    """Pass: the loss is below the margin; fail: above; inconclusive: the items do not tell. Both ends one-sided at `alpha`.

    Items that all stayed the same, or all changed alike by less than the margin, have no spread to estimate. They pass once a
    loss of the margin would have shown in one of them with confidence 1 - alpha (the rule of three), where no item changes by
    more than `span` (1 for right or wrong).
    """
    if margin <= 0:
        raise ValueError(f"A margin is the loss that is tolerable, above 0, but got {margin}. Say how large a loss matters.")
    change = paired_change(base, adapted, clusters, confidence=1 - 2 * alpha, seed=seed)
    needed: int | None
    if change.method in ("exact", "all alike") and change.mean > -margin:
        units = change.n if change.num_clusters < FEW_CLUSTERS else change.num_clusters
        # At worst the others, a share of at most (margin + mean) / (span + mean), lose all that can be lost.
        room = (margin + change.mean) / (span + change.mean)
        least = 1 if margin >= span else math.ceil(math.log(alpha) / math.log1p(-room))
        verdict: Verdict = "pass" if units >= least else "inconclusive"
        needed = math.ceil(least * change.n / units)
    else:
        verdict = "pass" if change.low > -margin else "fail" if change.high < -margin else "inconclusive"
        needed = items_to_decide(change, margin, alpha)
    return NonInferiority(verdict, change, margin, alpha, needed if verdict == "inconclusive" else None)
