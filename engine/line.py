"""The waiting line: who joins next, and that nobody is passed for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from engine.row import Row

MAX_PASSED = 32  # rows that came later and joined before; from then on the row is first, and nobody joins until it fits


class Order(Protocol):
    """A policy: whom of those that wait to let in first. It is asked at every step, with the rows as they came."""

    def __call__(self, waiting: Sequence[Row], /) -> Iterable[Row]: ...


def by_priority(waiting: Sequence[Row]) -> list[Row]:
    """The smaller priority first; of equal ones who came first."""
    return sorted(waiting, key=lambda row: row.priority)


class WaitingLine:
    """Rows that do not fit yet are passed by others that do, and rows of low priority by others, but at most MAX_PASSED times."""

    def __init__(self, order: Order = by_priority) -> None:
        self._order = order
        self._rows: list[Row] = []  # as they came

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def add(self, row: Row) -> None:
        self._rows.append(row)

    def leave(self, leaves: Callable[[Row], bool]) -> list[Row]:
        """Takes out those who leave, and tells who they were."""
        left = [row for row in self._rows if leaves(row)]
        if left:
            self._rows = [row for row in self._rows if row not in left]
        return left

    def take(self, most: int, fits: Callable[[Row], bool]) -> list[Row]:
        """At most so many that join now. `fits` is asked of one row after the other; what it says yes to has joined."""
        if most < 1 or not self._rows:
            return []
        taken: list[Row] = []
        for row in self._candidates():
            if fits(row):
                taken.append(row)
                if len(taken) == most:
                    break
            elif row.passed >= MAX_PASSED:
                break
        self._count_passed(taken)
        return taken

    def _candidates(self) -> Iterator[Row]:
        overdue = [row for row in self._rows if row.passed >= MAX_PASSED]
        yield from overdue
        yield from self._order([row for row in self._rows if row.passed < MAX_PASSED] if overdue else self._rows)

    def _count_passed(self, taken: Sequence[Row]) -> None:
        joined, later = {id(row) for row in taken}, len(taken)
        for row in self._rows:
            if id(row) in joined:
                later -= 1
            else:
                row.passed += later
        if taken:
            self._rows = [row for row in self._rows if id(row) not in joined]
