"""The mean of ratios that were measured side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import t


def told_ratio(ratios: Sequence[float], digits: int = 2) -> str:
    """The geometric mean with its 95 % interval, by Student's t over the logarithms; of one ratio, itself."""
    logs = [math.log(one) for one in ratios]
    mean = fmean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.{digits}f}"
    spread = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.{digits}f} [{math.exp(mean - spread):.{digits}f}, {math.exp(mean + spread):.{digits}f}]"
