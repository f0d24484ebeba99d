"""Long readings in slices, each between two steps, so that rows that write go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import Cache

from engine.twin import Twin

# Legend: B rows, T tokens, N tokens of all slices, H hidden, A key-value heads, D head width

T = TypeVar("T")
Run = Callable[[Callable[[], Any]], Any]  # calls its argument between two steps


def in_steps(run: Run, slices: Iterator[T | None]) -> T:
    """Every slice is a call of its own; what the last one gives is what was read."""
    while True:
        found: T | None = run(partial(next, slices))
        if found is not None:
            return found


class Slice(NamedTuple):
    low: int  # the place of its first token
    states_BTH: Tensor


def states_in_slices(
    embeds_BNH: Tensor,
    positions_BN: Tensor,
    mask_B1NN: Tensor,
    twin: Twin,
    computing: Callable[[], AbstractContextManager[object]],
    max_tokens: int,
) -> Iterator[Slice]:
    """Final hidden states of at most so many tokens at a time (one a row at least). No place may read one behind it.

    Every forward is inside `computing`, and nothing else is: other rows compute between two slices.
    """
    count, width = embeds_BNH.shape[:2]
    step = max(1, max_tokens // count)
    held = _AllKeys() if width > step else None
    for low in range(0, width, step):
        high = min(width, low + step)
        part = slice(low, high)
        with computing():
            mask_B1TN = mask_B1NN[:, :, part, :high]
            states_BTH = twin.states(embeds_BNH[:, part], positions_BN[:, part], mask_B1TN, held)
        yield Slice(low, states_BTH)


class _AllKeys(Cache):
    """Keys and values of all that went through it, in order."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # [B, A, T, D], by layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        before = self._held.get(layer_idx)
        if before is not None:
            key_states = torch.cat((before[0], key_states), dim=2)
            value_states = torch.cat((before[1], value_states), dim=2)
        self._held[layer_idx] = (key_states, value_states)
        return key_states, value_states
