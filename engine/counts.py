"""What has gone through a scheduler so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

UNLOADED = "(unloaded)"  # for all profiles that are loaded no more


@dataclass
class Counts:
    """`generated` and `steered` are tokens by profile name, `mixes` steps by how many different profiles wrote in them."""

    generated: Counter[str] = field(default_factory=Counter)
    steered: Counter[str] = field(default_factory=Counter)
    mixes: Counter[int] = field(default_factory=Counter)
    prefilled: int = 0  # tokens; of equal prompts that are read together, those of one
    cached: int = 0  # tokens of prompts that another request had read
    beside: int = 0  # tokens read by oracles and by peeks
    steps: int = 0
    decode_rows: int = 0

    def snapshot(self) -> Counts:
        """A copy, while another thread counts."""
        copies = (Counter(dict(self.generated)), Counter(dict(self.steered)), Counter(dict(self.mixes)))
        return Counts(*copies, self.prefilled, self.cached, self.beside, self.steps, self.decode_rows)

    def forget(self, name: str) -> None:
        """Its tokens count as those of a profile that is loaded no more: names that come and go leave no counts of their own."""
        self.generated, self.steered = without(name, self.generated), without(name, self.steered)

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


def without(name: str, counted: Counter[str]) -> Counter[str]:
    """As many in all."""
    return Counter({other: count for other, count in counted.items() if other != name}) + Counter({UNLOADED: counted[name]})
