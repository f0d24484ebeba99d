"""The prefix cache: keys and values of texts that were read, kept in blocks for later texts that begin alike."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.cache import RowCache
from engine.prefix import BLOCK, PrefixIndex, contents
from engine.reading import Seat

# Legend: N blocks, A key-value heads, T tokens of a block, D head width


class PrefixCache:
    """Blocks are copied out of a row's place and into another's: no row ever depends on what is kept here."""

    def __init__(self, max_tokens: int) -> None:
        self._max_blocks = max_tokens // BLOCK
        self._index = PrefixIndex(self._max_blocks)
        self._pool: list[tuple[Tensor, Tensor]] = []  # keys and values by layer, [N, A, T, D]

    @property
    def num_tokens(self) -> int:
        return len(self._index) * BLOCK

    def begin(self, seat: Seat, place: int, cache: RowCache) -> int:
        """Copies what is kept of the seat's prompt into its place; how many tokens that are."""
        if not self._max_blocks:
            return 0
        wanted = contents(seat.prompt)[: seat.most_cached // BLOCK]
        blocks = self._index.find(seat.reader, wanted)
        if blocks:
            cache.put(place, [(keys[blocks], values[blocks]) for keys, values in self._pool])
        return len(blocks) * BLOCK

    def keep(self, seat: Seat, place: int, cache: RowCache) -> None:
        """Keeps what the place holds of the seat's prompt and reply. Only for rows that were finite to this token."""
        if not self._max_blocks:
            return
        known, blocks = self._index.add(seat.reader, contents(seat.prompt, seat.written[:-1]))
        if not blocks:
            return
        self._make_room(max(blocks) + 1, cache)
        first = known * BLOCK
        for stored, found in zip(self._pool, cache.blocks(place, first, len(blocks), BLOCK), strict=True):
            for kept, part in zip(stored, found, strict=True):
                kept[blocks] = part

    def drop(self, source: int) -> None:
        """Everything that these weights have read."""
        self._index.drop(lambda reader: reader.source == source)
        if not len(self._index):
            self.clear()

    def clear(self) -> None:
        self._index = PrefixIndex(self._max_blocks)
        self._pool = []

    def _make_room(self, num_blocks: int, cache: RowCache) -> None:
        size = len(self._pool[0][0]) if self._pool else 0
        if num_blocks <= size:
            return
        size = min(self._max_blocks, max(num_blocks, 2 * size))
        if not self._pool:
            self._pool = [cache.empty_blocks(layer, size, BLOCK) for layer in range(cache.num_layers)]
            return
        for layer, pair in enumerate(self._pool):
            self._pool[layer] = (_grown(pair[0], size), _grown(pair[1], size))


def _grown(stored: Tensor, size: int) -> Tensor:
    grown = torch.zeros(size, *stored.shape[1:], dtype=stored.dtype, device=stored.device)
    grown[: len(stored)] = stored
    return grown
