"""Evidence: the paired values that a gate drew, kept so that the next gate of the same release goes on from there.

The gate's test may be looked at as often as one likes, but only as one test: a gate begun afresh is a second chance at
alpha. So an undecided gate is continued. What cannot be continued (other items, another measure, another precision) begins
afresh with a smaller share of alpha, and all shares of one release together are at most alpha. Margins are no part of the
conditions: the bounds hold for every threshold at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems


class Start(BaseModel):
    """What a gate is begun with. Kept before the first item is drawn: a gate that was cut off draws the same items again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: str  # SHA-256 of all that decides which items are drawn and what their values are
    seed: int
    alpha: float
    num_candidates: int
    restarts: int = 0

    def applied_to(self, settings: GateSettings) -> GateSettings:
        """The settings with the share of alpha that this gate may spend: never more than it was begun with."""
        return settings.model_copy(
            update={
                "alpha": min(self.alpha, settings.alpha),
                "num_candidates": max(self.num_candidates, settings.num_candidates),
                "restarts": self.restarts,
            }
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was drawn since the start: paired items by test, of so many rounds."""

    start: Start
    rounds: int = 0
    items: Mapping[str, PairedItems] = field(default_factory=dict)

    def to_json(self) -> str:
        items = {
            name: [paired.base.tolist(), paired.adapted.tolist(), paired.clusters, paired.fixed_clusters]
            for name, paired in self.items.items()
        }
        return json.dumps({"start": self.start.model_dump(), "rounds": self.rounds, "items": items})

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        stored = json.loads(text)
        items = {
            name: PairedItems.of(base, adapted, clusters, fixed_clusters=fixed)
            for name, (base, adapted, clusters, fixed) in stored["items"].items()
        }
        return cls(Start(**stored["start"]), stored["rounds"], items)

    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def begun(earlier: Evidence | None, conditions: str, settings: GateSettings, seed: int | None = None) -> Evidence:
    """The earlier evidence where the conditions are the same, else a fresh start that counts those before it."""
    if earlier is not None and earlier.start.conditions == conditions:
        return earlier
    fresh = Start(
        conditions=conditions,
        seed=secrets.randbits(31) if seed is None else seed,
        alpha=settings.alpha,
        num_candidates=settings.num_candidates,
    )
    if earlier is not None:
        spent = earlier.start.applied_to(settings)
        fresh = fresh.model_copy(
            update={"alpha": spent.alpha, "num_candidates": spent.num_candidates, "restarts": earlier.start.restarts + 1}
        )
    return Evidence(fresh)
