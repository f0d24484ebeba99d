"""Weighted hypotheses about a mind: likelihoods accumulate in their weights, and a collapsed set is drawn anew."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# What a verdict says of how probable an action is: the published options with the probabilities that they state.
OPTIONS = (
    ("a", "Very likely (about 90 %)", 0.9),
    ("b", "Likely (about 70 %)", 0.7),
    ("c", "Somewhat likely (about 60 %)", 0.6),
    ("d", "Somewhat unlikely (about 25 %)", 0.25),
    ("e", "Unlikely (about 20 %)", 0.2),
    ("f", "Very unlikely (below 10 %)", 0.05),
)
_MIN_MASS = 0.01  # a model that gives all options together less than this does not answer the question


def expected_likelihood(logprobs: Sequence[float]) -> float | None:
    """Of an action, from the log-probabilities of writing each option; None where they are no verdict."""
    if len(logprobs) != len(OPTIONS) or not all(math.isfinite(one) or one == -math.inf for one in logprobs):
        return None
    masses = [math.exp(one) for one in logprobs]
    if sum(masses) < _MIN_MASS:
        return None
    return sum(mass * value for mass, (_, _, value) in zip(masses, OPTIONS, strict=True)) / sum(masses)


@dataclass(frozen=True)
class Hypotheses:
    """`weights` sum to 1."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def alike(cls, texts: Sequence[str]) -> Hypotheses:
        return cls(tuple(texts), (1 / len(texts),) * len(texts))

    @property
    def effective_size(self) -> float:
        """1 / sum of squared weights."""
        return 1 / sum(weight * weight for weight in self.weights)

    @property
    def has_collapsed(self) -> bool:
        return self.effective_size < len(self.texts) / 2

    @property
    def diversity(self) -> float:
        """1 less the mean overlap of two hypotheses' words (Jaccard); 0 for a single one."""
        words = [frozenset(re.findall(r"\w+", text.casefold())) for text in self.texts]
        overlaps = [len(one & two) / len(one | two) if one | two else 1.0 for one, two in combinations(words, 2)]
        return 1 - sum(overlaps) / len(overlaps) if overlaps else 0.0

    def weighed(self, likelihoods: Sequence[float | None]) -> Hypotheses:
        """w proportional to w * L. Without a verdict (None) a hypothesis keeps its share, and the others share the rest anew."""
        known = [(weight, found) for weight, found in zip(self.weights, likelihoods, strict=True) if found is not None]
        mass = sum(weight for weight, _ in known)
        total = sum(weight * found for weight, found in known)
        if not total > 0:
            return self
        weights = (
            weight if found is None else weight * found * mass / total
            for weight, found in zip(self.weights, likelihoods, strict=True)
        )
        return Hypotheses(self.texts, tuple(weights))

    def resampled(self, draw: random.Random) -> Hypotheses:
        """As many again, drawn by their weights (multinomial), and weighted alike."""
        return Hypotheses.alike(draw.choices(self.texts, self.weights, k=len(self.texts)))

    def become(self, texts: Sequence[str]) -> Hypotheses:
        """Other words at the same weights."""
        return Hypotheses(tuple(texts), self.weights)

    def likeliest(self, mass: float = 0.9) -> tuple[str, ...]:
        """The distinct texts that make up this much of the weight, heaviest first."""
        weights: dict[str, float] = {}
        for text, weight in zip(self.texts, self.weights, strict=True):
            weights[text] = weights.get(text, 0.0) + weight
        kept, total = list[str](), 0.0
        for text in sorted(weights, key=lambda text: -weights[text]):
            if total >= mass:
                break
            kept.append(text)
            total += weights[text]
        return tuple(kept)
