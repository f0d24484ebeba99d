"""Seats: who runs, and the place of the cache that each one owns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from engine.cache import RowCache
from engine.reading import Seat
from engine.row import Row


class Seats:
    """Seat i owns place i. Those that write come first, so that their places are one piece; those that still read follow."""

    def __init__(self, cache: RowCache) -> None:
        self._cache = cache
        self._seats: list[Seat] = []
        self._num_writing = 0
        self._reading: list[Row] = []  # as they joined

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats)

    @property
    def rows(self) -> list[Row]:
        return [seat for seat in self._seats if isinstance(seat, Row)]

    @property
    def writing(self) -> Sequence[Seat]:
        return self._seats[: self._num_writing]

    @property
    def reading(self) -> Sequence[Row]:
        """Rows, the first to have joined first."""
        return tuple(self._reading)

    def places(self) -> dict[int, int]:
        """The place of each seat, by its id."""
        return {id(seat): place for place, seat in enumerate(self._seats)}

    def join(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._seats.extend(row.seats)
            self._reading.append(row)

    def begin_writing(self, rows: Iterable[Row]) -> None:
        """Their prompts are read."""
        for row in rows:
            self._reading.remove(row)
            for seat in row.seats:
                place = self._seats.index(seat)
                self._swap(place, self._num_writing)
                self._num_writing += 1

    def leave(self) -> None:
        """Takes out everybody who is finished."""
        self._reading = [row for row in self._reading if not row.is_finished]
        for place in reversed(range(len(self._seats))):
            if self._seats[place].is_finished:
                self._cache.wipe(place, self._seats[place].held)
                if place < self._num_writing:
                    self._num_writing -= 1
                    self._fill(place, self._num_writing)
                    place = self._num_writing
                self._fill(place, len(self._seats) - 1)
                self._seats.pop()

    def _swap(self, one: int, two: int) -> None:
        if one == two:
            return
        seats = self._seats
        self._cache.swap(one, two, max(seats[one].held, seats[two].held))
        seats[one], seats[two] = seats[two], seats[one]

    def _fill(self, hole: int, last: int) -> None:
        """The seat at `last` moves into a place that is wiped; the hole is then there."""
        if hole != last:
            self._cache.move(last, hole, self._seats[last].held)
            self._seats[hole] = self._seats[last]
