"""Waiting lines that are fair between keys: whoever asks for much waits behind his own, and not before others.

Deficit round robin (Shreedhar and Varghese 1995) over tokens: each key that waits gets `quantum` tokens of credit a round, and
its first request goes when the credit covers it. A key's own requests keep their order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
QUANTUM = 512  # tokens


@dataclass
class _Lane(Generic[T]):
    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    credit: int = 0
    is_credited: bool = False  # in this round


class FairLine(Generic[T]):
    def __init__(self, quantum: int = QUANTUM) -> None:
        self._quantum = quantum
        self._lanes: dict[str | None, _Lane[T]] = {}
        self._round: deque[str | None] = deque()  # keys with something waiting, whose turn it is first

    def __len__(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def add(self, key: str | None, tokens: int, item: T) -> None:
        if key not in self._lanes:
            self._lanes[key] = _Lane()
            self._round.append(key)
        self._lanes[key].waiting.append((tokens, item))

    def remove(self, key: str | None, item: T) -> None:
        """Who gave up waiting; nothing where it is not there."""
        lane = self._lanes.get(key)
        if lane is None:
            return
        lane.waiting = deque(entry for entry in lane.waiting if entry[1] is not item)
        if not lane.waiting:
            self._leave(key)

    def next(self) -> T | None:
        """Takes out whose turn it is."""
        while self._round:
            key = self._round[0]
            lane = self._lanes[key]
            if not lane.is_credited:
                lane.credit, lane.is_credited = lane.credit + self._quantum, True
            tokens, item = lane.waiting[0]
            if tokens <= lane.credit:
                lane.waiting.popleft()
                lane.credit -= tokens
                if not lane.waiting:
                    self._leave(key)  # with its credit: nobody saves up by not asking
                return item
            lane.is_credited = False
            self._round.rotate(-1)
        return None

    def _leave(self, key: str | None) -> None:
        del self._lanes[key]
        self._round.remove(key)


class PriorityLine(Generic[T]):
    """Fair lines one behind the other: nobody of a larger priority goes while one of a smaller waits."""

    def __init__(self) -> None:
        self._lines: dict[int, FairLine[T]] = {}
        self._firsts: dict[int, T] = {}  # whose turn it is in its own line, which has paid for it

    def add(self, priority: int, key: str | None, tokens: int, item: T) -> None:
        self._lines.setdefault(priority, FairLine()).add(key, tokens, item)

    def remove(self, priority: int, key: str | None, item: T) -> None:
        """Who gave up waiting; nothing where it is not there."""
        if self._firsts.get(priority) is item:
            del self._firsts[priority]
        elif (line := self._lines.get(priority)) is not None:
            line.remove(key, item)
            self._drop_empty(priority)

    @property
    def first(self) -> T | None:
        """Whose turn it is, and stays until somebody of a smaller priority comes."""
        if not self._lines and not self._firsts:
            return None
        priority = min(self._lines.keys() | self._firsts.keys())
        if priority not in self._firsts:
            found = self._lines[priority].next()
            assert found is not None  # an empty line is dropped
            self._firsts[priority] = found
            self._drop_empty(priority)
        return self._firsts[priority]

    def take(self) -> None:
        """Takes out whom `first` has just told."""
        del self._firsts[min(self._firsts)]

    def _drop_empty(self, priority: int) -> None:
        if not len(self._lines[priority]):
            del self._lines[priority]
