"""Which change the items at hand can show, and how many would decide a margin."""

from __future__ import annotations

import math

from scipy import stats

from evaluation.statistics import PairedChange


def smallest_detectable_change(change: PairedChange, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true change that items like these show by a two-sided test, in the measure's unit; their clusters count.

    Beside a change whose interval holds 0, it says how large a loss may have been overlooked. NaN where all items changed alike,
    or none did: items that show no spread do not say what others would.
    """
    if not change.stderr > 0:
        return math.nan
    return (_z(alpha / 2) + _z(1 - power)) * change.stderr


def items_to_decide(change: PairedChange, margin: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Items like these, in clusters like these, that decide a loss of the margin if the change is true; None if none would.

    Never fewer than there are. A change of exactly the margin is never decided, and one whose spread is unknown neither.
    """
    room = abs(change.mean + margin)
    if room == 0 or not change.stderr > 0:
        return None
    deviation = change.stderr * math.sqrt(change.n)
    return max(change.n, _items(deviation, room, _z(alpha) + _z(1 - power)))


def _items(deviation: float, room: float, z: float) -> int:
    return max(1, math.ceil((z * deviation / room) ** 2))


def _z(tail: float) -> float:
    return float(stats.norm.isf(tail))
