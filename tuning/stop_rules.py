"""When a fit is not worth its end, by what was read at a checkpoint. Every rule allows for the noise of few items.

An adapter's scale is chosen after its fit, and a smaller one loses less: a fit that ruins a family at full scale may be the best
of its study at half of it. No rule therefore stops a fit for what one scale shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

from tuning.stop_curve import FitReading, Point
from tuning.stop_settings import StopRecipe

Z = 1.645  # one-sided 95 %
Z_RIVAL = 1.0  # of one rival; several must be ahead


def stopped(reading: FitReading, rivals: Sequence[FitReading], settings: StopRecipe) -> str | None:
    """Why the fit should end here, in a sentence; None where it should go on. `rivals` are of other trials, one each."""
    if "floor" in settings.rules and (reason := below_floor(reading, settings.floor)):
        return reason
    if "dominated" in settings.rules:
        return dominated(reading, rivals, settings)
    return None


def below_floor(reading: FitReading, floor: float) -> str | None:
    """Even at the smallest scale a family, or all together, is sure (95 %) to have lost more than the floor."""
    if (point := reading.least) is None:
        return None
    family, change = min(point.families.items(), key=lambda item: item[1].high)
    if change.high < -floor:
        lost, what = -change.high, family
    elif point.retention + Z * point.retention_stderr < -floor:
        lost, what = -(point.retention + Z * point.retention_stderr), "the mean family"
    else:
        return None
    return (
        f"retention floor: after {reading.checkpoint:.0%} of the fit {what} has lost at least {lost:.1f} margins even at scale "
        f"{point.scale:g}, where the floor is {floor:g}."
    )


def dominated(reading: FitReading, rivals: Sequence[FitReading], settings: StopRecipe) -> str | None:
    """So many rivals were better at the same checkpoint than any scale of this one can be expected to be.

    That is: than the best gain that it showed with the least loss, which is none where the smallest scale was not read.
    """
    best = max(reading.points, key=lambda point: point.gain)
    least = reading.least
    hoped = Point(best.scale, best.gain, best.gain_stderr, least.families if least else {})
    compared = [rival for rival in rivals if rival.matches(reading)]
    ahead = [rival for rival in compared if any(is_better(other, hoped, settings) for other in rival.points)]
    if len(ahead) < settings.rivals:
        return None
    own = reading.chosen
    return (
        f"dominated: after {reading.checkpoint:.0%} of the fit {len(ahead)} of {len(compared)} other trials are better in gain "
        f"({own.gain:+.3f} here) and no worse in retention ({own.retention:+.2f} margins here) at the same checkpoint."
    )


def is_better(other: Point, own: Point, settings: StopRecipe) -> bool:
    """In both objectives, by more than epsilon and than chance explains (the errors taken as independent, which is cautious).

    Both were read on the same items. Pairing them would lower the error of their difference, but needs the value and the group of
    every item beside each mean, in the study's database; and a rule that stops more has a cost of its own, which the recorded
    trials of benchmarks.stop_rules, kept without items, cannot show. Where neither loses anything worth naming, nothing can be
    better in retention: the gain decides.
    """
    ahead = other.gain - own.gain - Z_RIVAL * hypot(other.gain_stderr, own.gain_stderr) > settings.epsilon_gain
    if min(other.retention, own.retention) >= -settings.epsilon_retention:
        return ahead
    noise = Z_RIVAL * hypot(other.retention_stderr, own.retention_stderr)
    return ahead and other.retention - own.retention - noise > settings.epsilon_retention
