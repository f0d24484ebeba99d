"""The area that a study's feasible trials dominate: gain to the right, retention upwards.

The reference point is a gain of 0 (the backbone itself) and a retention of -1 (every family lost its whole margin): what a
feasible trial must beat to be worth anything. The unit is share of items right times margins; the largest area is the largest
gain at no loss.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuning.candidates import Candidate

REFERENCE = (0.0, -1.0)  # (domain gain, retention)


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float] = REFERENCE) -> float:
    """Of points that are the better the larger both numbers are; one that is not above the reference in both adds nothing."""
    area, height = 0.0, reference[1]
    for gain, retention in sorted(points, reverse=True):
        if gain > reference[0] and retention > height:
            area += (gain - reference[0]) * (retention - height)
            height = retention
    return area


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The feasible ones that no other beats in both, by falling gain."""
    found: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.domain_gain, c.retention), reverse=True):
        if one.feasible and (not found or one.retention > found[-1].retention):
            found.append(one)
    return found


def hypervolume_of(candidates: Iterable[Candidate]) -> float:
    return hypervolume((c.domain_gain, c.retention) for c in candidates if c.feasible)
