"""One answer of several chains: the weighted vote, and the vote of those lengths at which the chains agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ballot:
    """What one chain answers, how sure it is, and in how many steps."""

    answer: str
    weight: float
    num_steps: int = 0


def weighted_vote(ballots: Sequence[Ballot], same: Callable[[str], str]) -> str:
    """The answer with the largest sum of weights; answers that `same` makes equal are one. Empty where there are no ballots.

    Ties go to the answer that was given first.
    """
    weights: dict[str, float] = {}
    first: dict[str, str] = {}
    for ballot in ballots:
        key = same(ballot.answer)
        weights[key] = weights.get(key, 0.0) + ballot.weight
        first.setdefault(key, ballot.answer)
    return first[max(weights, key=lambda key: weights[key])] if weights else ""


def length_filtered_vote(ballots: Sequence[Ballot], same: Callable[[str], str], steps_per_bin: int = 2, num_bins: int = 3) -> str:
    """The majority within the `num_bins` bins of like length whose answers have the lowest entropy (arXiv 2502.07266).

    A bin holds the chains of `steps_per_bin` neighbouring step counts. Of bins with equal entropy the fuller counts first: a
    chain that is alone in its bin agrees with itself.
    """
    bins: dict[int, list[Ballot]] = {}
    for ballot in ballots:
        bins.setdefault(ballot.num_steps // steps_per_bin, []).append(ballot)
    agreed = sorted(bins.values(), key=lambda held: (_entropy(held, same), -len(held)))[:num_bins]
    kept = {id(ballot) for held in agreed for ballot in held}
    return weighted_vote([Ballot(one.answer, 1.0, one.num_steps) for one in ballots if id(one) in kept], same)


def _entropy(ballots: Sequence[Ballot], same: Callable[[str], str]) -> float:
    from scipy.stats import entropy

    return round(float(entropy(list(Counter(same(ballot.answer) for ballot in ballots).values()))), 9)
