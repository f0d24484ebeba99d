"""Pages of the bank: which of them hold whose weights, who is idle longest, and how those in use lie together.

A page holds `PAGE` ranks of one adapter in every module, so that adapters of different ranks share a bank without padding to
the largest. Page 0 is nobody's and holds zeros: rows without an adapter read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

PAGE = 8  # ranks


def pages_for(rank: int) -> int:
    return max(1, -(-rank // PAGE))


@dataclass
class Pages:
    """`max_pages` counts page 0, `max_names` how many adapters may be resident."""

    max_pages: int
    max_names: int
    size: int = 1  # pages that there are so far
    _of: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the least recently used name first
    _free: set[int] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def __len__(self) -> int:
        return len(self._of)

    def of(self, name: str) -> tuple[int, ...]:
        """Nothing for a name that is not resident."""
        return self._of.get(name, ())

    def use(self, name: str) -> None:
        """The name is now the most recently used one."""
        if name in self._of:
            self._of[name] = self._of.pop(name)

    def has_room(self, count: int, keep: Collection[str]) -> bool:
        """Whether `count` pages could be had by letting go of names that are not in `keep`."""
        kept = [pages for name, pages in self._of.items() if name in keep]
        return len(kept) < self.max_names and 1 + sum(map(len, kept)) + count <= self.max_pages

    def take(self, name: str, count: int, keep: Collection[str]) -> list[str]:
        """Gives the name `count` pages, the lowest that are free. Returns who had to go, the least recently used first."""
        assert name not in self._of and self.has_room(count, keep)
        gone = []
        for idle in [other for other in self._of if other not in keep]:
            if len(self._of) < self.max_names and len(self._free) + self.max_pages - self.size >= count:
                break
            self.give(idle)
            gone.append(idle)
        while len(self._free) < count:
            self._free.add(self.size)
            self.size += 1
        self._of[name] = tuple(sorted(self._free)[:count])
        self._free -= set(self._of[name])
        return gone

    def give(self, name: str) -> None:
        self._free |= set(self._of.pop(name, ()))

    def gathered(self, names: Iterable[str]) -> dict[int, int]:
        """Where pages must move, by where they are, so that those of the names are the lowest. Empty where they lie well.

        Pages change places in pairs, and are theirs at their new places when this returns.
        """
        wanted = {page for name in names for page in self.of(name)}
        if not wanted or max(wanted) <= 2 * len(wanted):
            return {}
        front = range(1, len(wanted) + 1)
        moves = dict[int, int]()
        for far, near in zip(sorted(wanted - set(front)), sorted(set(front) - wanted), strict=True):
            moves |= {far: near, near: far}
        self._of = {name: tuple(moves.get(page, page) for page in pages) for name, pages in self._of.items()}
        self._free = {moves.get(page, page) for page in self._free}
        return moves

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)
