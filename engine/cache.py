"""Keys and values of the running rows: one place a row, each row as long as its own text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

# Legend: B rows, C columns (places in a text), A key-value heads, T new tokens, D head width
_BLOCK = 64  # columns are added in blocks, so that growing is rare


@dataclass(frozen=True)
class _Prefill:
    """New rows from `start` on, row i with what the forward's row `index_B[i]` read; columns below its length are kept."""

    start: int
    kept_B1T1: Tensor
    index_B: Tensor


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
    """Rows 0..n-1 run. A row that leaves is overwritten by the last one, so the rest stay together.

    Unused places hold zeros or finite values of rows long gone: a masked NaN would still spoil a sum.
    """

    def __init__(self, num_layers: int, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self._dtype = dtype
        self._stored: list[tuple[Tensor, Tensor] | None] = [None] * num_layers  # keys and values, [B, A, C, D]
        self._size = (0, 0)
        self._now: _Prefill | _Decode | _Peek | None = None

    def reserve(self, num_rows: int, num_columns: int) -> None:
        """Makes room; what is stored stays."""
        rows, columns = self._size
        if num_rows <= rows and num_columns <= columns:
            return
        self._size = (max(rows, num_rows), max(columns, -(-num_columns // _BLOCK) * _BLOCK))
        for layer, pair in enumerate(self._stored):
            if pair is not None:
                self._stored[layer] = (self._grown(pair[0]), self._grown(pair[1]))

    def prefill(self, start: int, lengths_B: Tensor, width: int, index_B: Tensor) -> None:
        """The next forward reads whole prompts, padded at their ends to `width`, for rows from `start` on.

        Row `start + i` takes what the forward's row `index_B[i]` read, so that equal prompts are read once.
        """
        kept_BT = torch.arange(width, device=lengths_B.device) < lengths_B[:, None]
        self._now = _Prefill(start, kept_BT[:, None, :, None], index_B)

    def decode(self, columns_B: Tensor, width: int) -> None:
        """The next forward reads one token a row, which stands at its column."""
        self._now = _Decode(torch.arange(len(columns_B), device=columns_B.device), columns_B, width)

    def peek(self, rows_B: Tensor, columns_B: Tensor, width: int) -> None:
        """The next forward reads these rows' last tokens once more, each instead of what stands at its column; none is kept."""
        self._now = _Peek(rows_B, columns_B, width)

    def move(self, source: int, target: int, length: int) -> None:
        for keys, values in filter(None, self._stored):
            for stored in (keys, values):
                stored[target, :, :length] = stored[source, :, :length]

    def wipe(self, row: int) -> None:
        """Zeros for a row that held NaN, before another row may use its place."""
        for keys, values in filter(None, self._stored):
            keys[row].zero_()
            values[row].zero_()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._layer(layer_idx, key_states, value_states)
        now = self._now
        if isinstance(now, _Prefill):
            count, width = len(now.index_B), key_states.shape[2]
            for stored, states in ((keys, key_states), (values, value_states)):
                kept = torch.where(now.kept_B1T1, states, 0).to(self._dtype)
                stored[now.start : now.start + count, :, :width] = kept[now.index_B]
            return key_states, value_states
        assert now is not None
        if isinstance(now, _Peek):
            read = tuple(stored[now.rows_B, :, : now.width].clone() for stored in (keys, values))
            for found, states in zip(read, (key_states, value_states), strict=True):
                found[torch.arange(len(now.rows_B), device=found.device), :, now.columns_B] = states[:, :, 0].to(self._dtype)
            return read[0], read[1]
        for stored, states in ((keys, key_states), (values, value_states)):
            stored[now.rows_B, :, now.columns_B] = states[:, :, 0].to(self._dtype)
        count = len(now.columns_B)
        return keys[:count, :, : now.width], values[:count, :, : now.width]

    def _layer(self, layer: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        found = self._stored[layer]
        if found is None:
            found = (self._empty(key_states), self._empty(value_states))
            self._stored[layer] = found
        return found

    def _empty(self, like: Tensor) -> Tensor:
        rows, columns = self._size
        return torch.zeros(rows, like.shape[1], columns, like.shape[3], dtype=self._dtype, device=like.device)

    def _grown(self, stored: Tensor) -> Tensor:
        grown = self._empty(stored)
        grown[: stored.shape[0], :, : stored.shape[2]] = stored
        return grown
