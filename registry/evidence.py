"""Evidence: the paired values that a gate drew, kept so that the next gate of the same release goes on from there.

The gate's test may be looked at as often as one likes, but only as one test: a gate begun afresh is a second chance at
alpha. So an undecided gate is continued. What cannot be continued (other items, another measure, another precision) begins
afresh with a smaller share of alpha. Margins are no part of the conditions: the bounds hold for every threshold at once.

Alpha belongs to the name, from one promotion to the next: the chance that any release is promoted that should not be. It has
shares 0, 1, 2, ... of falling size that add up to alpha. A gate among `num_candidates` takes that part of the first share that
still has room for it, so that candidates declared together divide one share and each later version gets a smaller one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count
from operator import index
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from adapters.whole_file import write_whole
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems


class Share(NamedTuple):
    """What a gate took of its name's alpha: 1 / num_candidates of share `number`. The seed tells gates apart."""

    seed: int
    promotions: int  # of the name, when the gate was begun
    number: int
    num_candidates: int


@dataclass(frozen=True)
class Spent:
    """What the gates of a name have taken so far, and how often a gate of it promoted."""

    promotions: int = 0
    shares: frozenset[Share] = frozenset()

    def next_share(self, num_candidates: int, least: int = 0) -> int:
        """The first share since the last promotion, from `least` on, in which one of so many candidates still has room."""
        taken = (self._taken(self.promotions, number) for number in count(least))
        return next(number for number, part in enumerate(taken, least) if part + Fraction(1, num_candidates) <= 1)

    def is_overdrawn(self, share: Share) -> bool:
        """Whether the gates that took a part of that share took more than there is of it."""
        return self._taken(share.promotions, share.number) > 1

    def _taken(self, promotions: int, number: int) -> Fraction:
        own = (share for share in self.shares if (share.promotions, share.number) == (promotions, number))
        return sum((Fraction(1, share.num_candidates) for share in own), Fraction(0))


class Start(BaseModel):
    """What a gate is begun with. Kept before the first item is drawn: a gate that was cut off draws the same items again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: str  # SHA-256 of all that decides which items are drawn and what their values are
    seed: int
    alpha: float
    num_candidates: int
    restarts: int = 0  # the number of the share
    promotions: int = 0
    earlier: tuple[Share, ...] = ()  # of gates of the same files that could not be continued

    @property
    def shares(self) -> tuple[Share, ...]:
        return (*self.earlier, Share(self.seed, self.promotions, self.restarts, self.num_candidates))

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
        """Raises ValueError where the text is anything else."""
        stored = json.loads(text)
        try:
            items = {
                name: PairedItems.of(base, adapted, clusters, fixed_clusters=fixed)
                for name, (base, adapted, clusters, fixed) in stored["items"].items()
            }
            return cls(Start(**stored["start"]), index(stored["rounds"]), items)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Evidence has a start, rounds and paired items, but this text has not ({error}).") from error

    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def keep(self, file: Path) -> None:
        """After every round, so that a gate that is killed loses no more than the round it was in."""
        write_whole(file, self.to_json())

    @classmethod
    def kept(cls, file: Path) -> Evidence | None:
        """None where there is no such file, or it is damaged."""
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def or_kept(self, file: Path) -> Evidence:
        """What a gate of the same start had kept in the file, where that is more."""
        kept = Evidence.kept(file)
        return kept if kept is not None and kept.start == self.start and kept.rounds > self.rounds else self


def begun(
    earlier: Evidence | None, conditions: str, settings: GateSettings, seed: int | None = None, spent: Spent | None = None
) -> Evidence:
    """The earlier evidence where the conditions are the same, else a fresh start with the name's next share of alpha."""
    spent = spent or Spent()
    if earlier is not None and earlier.start.conditions == conditions:
        start = earlier.start
        if start.shares[-1] in spent.shares:
            return earlier
        # The same files under another name: its evidence goes on, with no more alpha than this name has left.
        share = max(start.restarts, spent.next_share(max(start.num_candidates, settings.num_candidates)))
        return replace(earlier, start=start.model_copy(update={"restarts": share, "promotions": spent.promotions}))
    before = earlier.start.applied_to(settings) if earlier is not None else settings
    own = earlier.start.shares if earlier is not None else ()
    least = earlier.start.restarts + 1 if earlier is not None else 0
    return Evidence(
        Start(
            conditions=conditions,
            seed=secrets.randbits(31) if seed is None else seed,
            alpha=before.alpha,
            num_candidates=before.num_candidates,
            restarts=Spent(spent.promotions, spent.shares.union(own)).next_share(before.num_candidates, least),
            promotions=spent.promotions,
            earlier=own,
        )
    )
