"""Whether probabilities mean what they say: proper scores over closed sets of answers, their parts, the temperature that fits.

The scores (Brier, log-probability) are for comparisons, item by item. The calibration error is for pictures only: it is biased
upward on few items (0.05 at 500 of a perfectly calibrated model), so what chance would give is taken off, and it is never
compared between numbers of items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from adapters.whole_file import written_whole
from evaluation.statistics import wilson

Floats = NDArray[np.float64]
Scores = Sequence[
    Sequence[float]
]  # log-probabilities of an item's answers, the right one first; items may have different numbers

_SCALE = (1e-3, 1e3)  # within which a temperature is looked for
NUM_BINS = 10


def probabilities(scores: Sequence[float], temperature: float = 1.0) -> Floats:
    """Softmax over the closed set."""
    found: Floats = special.softmax(np.asarray(scores, dtype=np.float64) / temperature)
    return found


def brier(scores: Sequence[float], temperature: float = 1.0) -> float:
    """Sum over the answers of (p - y)^2: 0 is certain and right, 2 certain and wrong (Brier 1950, several classes)."""
    found = probabilities(scores, temperature)
    found[0] -= 1
    return float((found**2).sum())


def log_probability(scores: Sequence[float], temperature: float = 1.0) -> float:
    """Natural log of the right answer's probability within the closed set; its negative is the NLL."""
    return float(special.log_softmax(np.asarray(scores, dtype=np.float64) / temperature)[0])


def best_temperature(scores: Scores) -> float | None:
    """T* that makes the answers likeliest when scores are divided by it (Guo et al. 2017): above 1 is overconfident.

    None where none is best: a model that is never wrong is the likelier the colder it is, and one that knows nothing the hotter.
    """
    # The loss is convex in 1 / T: it has a bottom where it falls from 1 / T = 0 and where some answer is beaten.
    falls = sum(row[0] - float(np.mean(row)) for row in scores) > 0
    if not falls or all(row[0] == max(row) for row in scores):
        return None

    def loss(log_temperature: float) -> float:
        return -float(np.mean([log_probability(row, float(np.exp(log_temperature))) for row in scores]))

    found = optimize.minimize_scalar(loss, bounds=np.log(_SCALE), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Bin:
    """Items of like confidence."""

    confidence: float  # mean
    accuracy: float
    count: int


def equal_mass_bins(confidence: Sequence[float], right: Sequence[float], count: int = NUM_BINS) -> list[Bin]:
    """In the order of confidence, with equally many items but for one."""
    said, was = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    parts = np.array_split(np.argsort(said, kind="stable"), min(count, len(said)))
    return [Bin(float(said[part].mean()), float(was[part].mean()), len(part)) for part in parts]


@dataclass(frozen=True)
class Murphy:
    """Mean (confidence - right)^2 = reliability - resolution + uncertainty + within (Murphy 1973; Stephenson et al. 2008).

    Reliability is what is lost by confidence that is off (0 is best), resolution what is won by telling items apart, uncertainty
    what the accuracy alone leaves open. `within` is what bins hide: near 0 where each holds like confidences.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within: float

    @property
    def brier(self) -> float:
        """Their sum, 0 at best: of a yes or no, half of what `brier` above gives."""
        return self.reliability - self.resolution + self.uncertainty + self.within


def murphy(confidence: Sequence[float], right: Sequence[float], count: int = NUM_BINS) -> Murphy:
    bins = equal_mass_bins(confidence, right, count)
    shares = np.array([one.count for one in bins]) / len(confidence)
    said, was = np.array([one.confidence for one in bins]), np.array([one.accuracy for one in bins])
    accuracy = float(shares @ was)
    reliability, resolution = float(shares @ (said - was) ** 2), float(shares @ (was - accuracy) ** 2)
    uncertainty = accuracy * (1 - accuracy)
    whole = float(np.mean((np.asarray(confidence) - np.asarray(right)) ** 2))
    return Murphy(reliability, resolution, uncertainty, whole - (reliability - resolution + uncertainty))


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, by items (ECE)."""
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / sum(one.count for one in bins)


def excess_calibration_error(confidence: Sequence[float], right: Sequence[float], draws: int = 200, seed: int = 0) -> float:
    """The calibration error less what a model of the same confidences would show by chance if they were true; about 0 is good."""
    rng, said = np.random.default_rng(seed), np.asarray(confidence, dtype=np.float64)
    lucky = rng.random((draws, len(said))) < said
    by_chance = [calibration_error(equal_mass_bins(confidence, row.astype(float).tolist())) for row in lucky]
    return calibration_error(equal_mass_bins(confidence, right)) - float(np.mean(by_chance))


def draw(sides: Mapping[str, tuple[Sequence[float], Sequence[float]]], file: Path) -> Path:
    """Writes a PNG of accuracy by confidence, by side (confidence and right of each item), and returns its path.

    Bars are Wilson's 95 % intervals; readable in grey, by marker.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linewidth=0.8, linestyle=":", color="grey")
    for marker, (name, (confidence, right)) in zip("os^v", sides.items(), strict=False):
        bins = equal_mass_bins(confidence, right)
        ends = np.array([wilson(round(one.accuracy * one.count), one.count) for one in bins])
        accuracy = np.array([one.accuracy for one in bins])
        reach = np.maximum(0.0, [accuracy - ends[:, 0], ends[:, 1] - accuracy])
        label = f"{name}: error {excess_calibration_error(confidence, right):+.3f} beyond chance, {len(confidence)} items"
        axes.errorbar([one.confidence for one in bins], accuracy, yerr=reach, marker=marker, capsize=2, linewidth=1, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence in the chosen option (bins of equally many items)")
    axes.set_ylabel("share right")
    axes.legend(loc="upper left", fontsize=7)
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file
