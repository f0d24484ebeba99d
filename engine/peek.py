"""Peeks: what the backbone would write next if one layer's output were shifted at one place, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import Cache

from adapters.residual import ResidualShift
from engine.twin import Twin

# Legend: B rows, T tokens, P places, H hidden, V vocabulary, A key-value heads, D head width


class CleanKeys(Cache):
    """Holds keys and values of what goes through it first; what goes through later reads them and is not kept."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # [B, A, T, D], by layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if layer_idx not in self._held:
            self._held[layer_idx] = (key_states, value_states)
            return key_states, value_states
        keys, values = self._held[layer_idx]
        return torch.cat((keys, key_states), dim=2), torch.cat((values, value_states), dim=2)


@contextmanager
def shifted(twin: Twin, shifts: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside, a layer's output is what it is plus `shifts[layer]`, of a shape that fits [B, T, H]; gradients flow into it."""

    with ExitStack() as stack:
        for layer, shift in shifts.items():
            stack.callback(twin.layers[layer].register_forward_hook(ResidualShift(shift, 1.0)).remove)
        yield


def read_text(twin: Twin, ids: Sequence[int]) -> tuple[Tensor, CleanKeys]:
    """The final states of a text, [T, H], and what peeks at it need."""
    held, count = CleanKeys(), len(ids)
    causal_11TT = torch.ones(count, count, dtype=torch.bool, device=twin.device).tril()[None, None]
    positions_BT = torch.arange(count, device=twin.device)[None]
    ids_BT = torch.tensor([list(ids)], device=twin.device)
    return twin.states(twin.embeddings(ids_BT), positions_BT, causal_11TT, held)[0], held


def peek(twin: Twin, ids: Sequence[int], held: CleanKeys, places: Sequence[int], layer: int, shifts_PH: Tensor) -> Tensor:
    """Logits for what follows each place of the text, [P, V], each as if its place alone were shifted."""
    places_P = torch.tensor(list(places), device=twin.device)
    ids_BP = torch.tensor([[ids[place] for place in places]], device=twin.device)
    before_PT = torch.arange(len(ids), device=twin.device) < places_P[:, None]
    itself_PP = torch.eye(len(places), dtype=torch.bool, device=twin.device)
    mask_11PS = torch.cat((before_PT, itself_PP), dim=1)[None, None]
    with shifted(twin, {layer: shifts_PH[None]}):
        states_BPH = twin.states(twin.embeddings(ids_BP), places_P[None], mask_11PS, held)
    return twin.logits(states_BPH[0])
