"""How many items make a loss visible, and which loss a number of items can show."""

from __future__ import annotations

import math

from scipy import optimize, stats

from evaluation.statistics import PairedChange


def items_to_detect(change: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Paired right-or-wrong items with which McNemar's two-sided test sees a change of the accuracy (Connor 1987).

    `discordance` is the share of items that one of the two models gets right and the other wrong; it is at least the change.
    For one of K families under Holm, the worst case is `alpha / K`.
    """
    if not 0 < abs(change) <= discordance <= 1:
        raise ValueError(
            f"A change of the accuracy is at most the discordance, and neither is 0, but got {change} and {discordance}. "
            "Take the discordance of a pilot on the same items."
        )
    return math.ceil(_root_items(abs(change), discordance, alpha, power) ** 2)


def items_to_show_retention(
    margin: float, discordance: float, change: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Paired right-or-wrong items with which a one-sided test at `alpha` excludes a loss of the margin, if `change` is true."""
    if margin + change <= 0:
        raise ValueError(
            f"Retention within a margin can be shown only of a smaller loss, but the margin is {margin} and the change {change}. "
            "Widen the margin, or expect a fail."
        )
    return _items(math.sqrt(max(0.0, discordance - change**2)), margin + change, _z(alpha) + _z(1 - power))


def items_to_detect_continuous(change: float, deviation: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Paired items with which a two-sided test sees a change of a continuous measure whose differences have that deviation."""
    if not change:
        raise ValueError(f"A change that can be seen is not 0, but got {change}. Say which loss would matter.")
    return _items(deviation, abs(change), _z(alpha / 2) + _z(1 - power))


def smallest_detectable(num_items: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest change of the accuracy that so many paired items show by McNemar's test; NaN if not even the largest."""

    def missing(change: float) -> float:
        return _root_items(change, discordance, alpha, power) - math.sqrt(num_items)

    if missing(discordance) > 0:
        return math.nan
    return float(optimize.brentq(missing, 1e-9, discordance))


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


def _root_items(change: float, discordance: float, alpha: float, power: float) -> float:
    spread = math.sqrt(max(0.0, discordance - change**2))
    return (_z(alpha / 2) * math.sqrt(discordance) + _z(1 - power) * spread) / change


def _items(deviation: float, room: float, z: float) -> int:
    return max(1, math.ceil((z * deviation / room) ** 2))


def _z(tail: float) -> float:
    return float(stats.norm.isf(tail))
