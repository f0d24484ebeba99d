"""Reading prompts in chunks: how much of which prompt the next step takes, and which rows read the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.oracle import Oracle
from engine.row import Row

Seat = Row | Oracle
MIN_SHARE = 16  # tokens: a prompt that would get fewer beside others waits for a step of its own


@dataclass(frozen=True)
class Chunk:
    """The next `count` places of one prompt, for every seat that reads the same and is as far."""

    seats: tuple[Seat, ...]
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def is_whole(self) -> bool:
        """Nothing before it is in the cache."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.end == len(self.seats[0].prompt.ids)


def plan(reading: Sequence[Row], budget: int) -> list[Chunk]:
    """Chunks of the rows in their order; padded to the longest of them they take at most `budget` tokens, or are one row's.

    A prompt that is longer than a step's budget leaves half of it to others. A routed row and its oracle end in the same step.
    """
    groups = _groups(reading)
    chunks: list[Chunk] = []
    width = 0
    for rows in groups:
        share = budget // (len(chunks) + len(rows[0].seats))
        longest = max(seat.to_read for seat in rows[0].seats)
        if not chunks and len(groups) > 1 and longest > share:
            share //= 2
        if chunks and share < max(width, min(longest, MIN_SHARE)):
            continue
        parts = _parts(rows, max(1, share))
        chunks.extend(parts)
        width = max(width, *(chunk.count for chunk in parts))
        if width * (len(chunks) + 1) > budget:
            break
    return chunks


def _groups(reading: Sequence[Row]) -> list[list[Row]]:
    """Rows that read the same from the same place on."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in reading:
        found.setdefault(tuple(part for seat in row.seats for part in (seat.reads, seat.read)), []).append(row)
    return list(found.values())


def _parts(rows: Sequence[Row], share: int) -> list[Chunk]:
    ends = all(seat.to_read <= share for seat in rows[0].seats)
    chunks = []
    for seats in zip(*(row.seats for row in rows), strict=True):
        # The last place is kept back until the row's other seat is as far: what both say there is looked at together.
        count = seats[0].to_read if ends else min(share, seats[0].to_read - 1)
        if count:
            chunks.append(Chunk(seats, seats[0].read, count))
    return chunks
