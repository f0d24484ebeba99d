"""Keys and values of the running rows: one place a row, each row as long as its own text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

# Legend: B rows, C columns (places in a text), A key-value heads, T new tokens, D head width, N tokens that are kept
_BLOCK = 64  # columns are added in blocks, so that growing is rare
_SPARE = 4  # a cache that is so many times too large is made smaller


def whole_columns(count: int) -> int:
    """How many columns are held for so many places."""
    return -(-count // _BLOCK) * _BLOCK


@dataclass(frozen=True)
class Span:
    """`count` places of a prompt from `start` on, that the forward's row `source` reads for the cache's row `row`."""

    row: int
    source: int
    start: int
    count: int


@dataclass(frozen=True)
class _Read:
    """Token N of the forward, at row and place of `sources_2N`, goes to row and column of `targets_2N`."""

    sources_2N: Tensor
    targets_2N: Tensor
    rows_B: Tensor | None  # whose columns below `width` the forward reads; None: nothing but what it brings itself
    width: int


@dataclass(frozen=True)
class _Peek:
    """One token for each of some rows, read at `columns_B` and not kept."""

    rows_B: Tensor
    columns_B: Tensor
    width: int


@dataclass(frozen=True)
class _Decode:
    """One token for each of the first rows, written at `columns_B`; `width` columns are read."""

    rows_B: Tensor
    columns_B: Tensor
    width: int


class RowCache(Cache):
    """The first rows write, those behind them read their prompts.

    A place that its row has left holds zeros: a masked NaN or infinity would still spoil a sum.
    """

    def __init__(self, num_layers: int, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self.num_layers = num_layers
        self._dtype = dtype
        self._stored: list[tuple[Tensor, Tensor] | None] = [None] * num_layers  # keys and values, [B, A, C, D]
        self.size = (0, 0)
        self._now: _Read | _Decode | _Peek | None = None

    def fit(self, num_rows: int, num_columns: int, max_tokens: int) -> None:
        """Makes room for so much; gives some back where far too much is held, or together more than `max_tokens`."""
        rows, columns = self.size
        needed = (num_rows, whole_columns(num_columns))
        # Rows come one by one, and each would move all of the cache.
        wanted = (rows if num_rows <= rows else max(num_rows, rows + rows // 2), max(columns, needed[1]))
        held = wanted[0] * wanted[1]
        if held > _SPARE * needed[0] * needed[1] or held > max_tokens:
            wanted = needed
        if wanted == self.size:
            return
        self.size = wanted
        for layer, pair in enumerate(self._stored):
            if pair is not None:
                self._stored[layer] = (self._resized(pair[0]), self._resized(pair[1]))

    def read(self, spans: Sequence[Span], device: torch.device) -> None:
        """The next forward reads these spans, one a row of the forward; several may take what one row of it reads."""
        sources = [(span.source, place) for span in spans for place in range(span.count)]
        targets = [(span.row, span.start + place) for span in spans for place in range(span.count)]
        first_of = {span.source: span for span in reversed(spans)}
        goes_on = any(span.start for span in spans)
        rows_B = torch.tensor([first_of[source].row for source in sorted(first_of)], device=device) if goes_on else None
        width = max(span.start + span.count for span in spans)
        self._now = _Read(torch.tensor(sources, device=device).T, torch.tensor(targets, device=device).T, rows_B, width)

    def decode(self, columns_B: Tensor, width: int) -> None:
        """The next forward reads one token a row, which stands at its column."""
        self._now = _Decode(torch.arange(len(columns_B), device=columns_B.device), columns_B, width)

    def peek(self, rows_B: Tensor, columns_B: Tensor, width: int) -> None:
        """The next forward reads these rows' last tokens once more, each instead of what stands at its column; none is kept."""
        self._now = _Peek(rows_B, columns_B, width)

    def move(self, source: int, target: int, length: int) -> None:
        """Into a place that was wiped."""
        for stored in self._parts():
            stored[target, :, :length] = stored[source, :, :length]
            stored[source, :, :length] = 0

    def swap(self, one: int, two: int, length: int) -> None:
        for stored in self._parts():
            held = stored[one, :, :length].clone()
            stored[one, :, :length] = stored[two, :, :length]
            stored[two, :, :length] = held

    def wipe(self, row: int, length: int) -> None:
        for stored in self._parts():
            stored[row, :, :length] = 0

    def put(self, row: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The row begins with these blocks, [N, A, T, D] by layer."""
        for layer, pair in enumerate(layers):
            for stored, blocks in zip(self._layer(layer, pair[0], pair[1]), pair, strict=True):
                stored[row, :, : blocks.shape[0] * blocks.shape[2]] = blocks.transpose(0, 1).flatten(1, 2)

    def blocks(self, row: int, first: int, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """By layer, so many blocks of the row from a column on, [N, A, T, D]: views of what is stored."""
        for pair in self._stored:
            assert pair is not None
            keys, values = (stored[row, :, first : first + count * size].unflatten(1, (count, size)) for stored in pair)
            yield keys.transpose(0, 1), values.transpose(0, 1)

    def empty_blocks(self, layer: int, count: int, size: int) -> tuple[Tensor, Tensor]:
        pair = self._stored[layer]
        assert pair is not None
        keys, values = (stored.new_zeros(count, stored.shape[1], size, stored.shape[3]) for stored in pair)
        return keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        pair, now = self._layer(layer_idx, key_states, value_states), self._now
        assert now is not None
        brought = (key_states, value_states)
        if isinstance(now, _Read):
            for stored, states in zip(pair, brought, strict=True):
                (rows_N, columns_N), (from_N, at_N) = now.targets_2N, now.sources_2N
                stored[rows_N, :, columns_N] = states[from_N, :, at_N].to(self._dtype)
            if now.rows_B is None:
                return brought
            return pair[0][now.rows_B, :, : now.width], pair[1][now.rows_B, :, : now.width]
        if isinstance(now, _Peek):
            read = tuple(stored[now.rows_B, :, : now.width] for stored in pair)
            for found, states in zip(read, brought, strict=True):
                found[torch.arange(len(now.rows_B), device=found.device), :, now.columns_B] = states[:, :, 0].to(self._dtype)
            return read[0], read[1]
        for stored, states in zip(pair, brought, strict=True):
            stored[now.rows_B, :, now.columns_B] = states[:, :, 0].to(self._dtype)
        count = len(now.columns_B)
        return pair[0][:count, :, : now.width], pair[1][:count, :, : now.width]

    def _parts(self) -> Iterator[Tensor]:
        for pair in filter(None, self._stored):
            yield from pair

    def _layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is stored of a layer; these keys and values, [*, A, *, D], say how wide it is."""
        found = self._stored[layer]
        if found is None:
            found = (self._empty(keys), self._empty(values))
            self._stored[layer] = found
        return found

    def _empty(self, like: Tensor) -> Tensor:
        rows, columns = self.size
        return torch.zeros(rows, like.shape[1], columns, like.shape[3], dtype=self._dtype, device=like.device)

    def _resized(self, stored: Tensor) -> Tensor:
        resized = self._empty(stored)
        rows, columns = (min(pair) for pair in zip(self.size, (stored.shape[0], stored.shape[2]), strict=True))
        resized[:rows, :, :columns] = stored[:rows, :, :columns]
        return resized
