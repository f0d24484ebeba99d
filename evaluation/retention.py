"""Retention as an objective: the mean loss over the protected families, in units of what is tolerable."""

from __future__ import annotations

from collections.abc import Mapping

# What loss is tolerable when a recipe says nothing, by the unit of the measure.
DEFAULT_MARGINS = {
    "nats per token": 0.03,
    "share right in every step": 0.15,  # coarse: a trial writes few items; the gate writes many and has margins of its own
    "share right": 0.05,
}


def capped_retention(changes: Mapping[str, float], margins: Mapping[str, float]) -> float:
    """Mean over the families of min(0, change / margin): a gain buys nothing, every loss counts. 0 is none lost."""
    if not changes:
        raise ValueError("Retention is a mean over protected families, but there is none. Protect at least one.")
    return sum(min(0.0, change / margins[family]) for family, change in changes.items()) / len(changes)


def violations(changes: Mapping[str, float], margins: Mapping[str, float]) -> dict[str, float]:
    """By family: the loss in margins, minus 1; at or below 0 is tolerable (Optuna's sign of a constraint)."""
    return {family: -change / margins[family] - 1.0 for family, change in changes.items()}
