"""The adapter bank: what many profiles add inside one model, each applied to its own rows of a batch.

Updates are kept by name, each in its own rank, and a batch is worked off profile by profile: two plain products for each
profile that is present. Gathering stacked weights by row instead would copy every row's A and B in every layer and step.
Residual vectors (steering) are kept alike, by layer; one that holds a feature reads the state that it is added to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from adapters.adapter import Contribution, Held, LowRank
from adapters.errors import DamagedAdapter, RefusedAdapter

# Legend: B rows of the batch, T tokens, R rank, I in, O out, H hidden

BASE = ""  # the name of rows without any update


@dataclass(frozen=True)
class _Rows:
    """The rows of the batch that one profile owns; None: all of them."""

    name: str
    rows: Tensor | None


class AdapterBank:
    """Hooks sit on the modules that a loaded profile targets, and do nothing for rows of the base."""

    def __init__(
        self, linears: Mapping[str, nn.Linear], dtype: torch.dtype, layers: Sequence[nn.Module] = (), hidden_size: int = 0
    ) -> None:
        """`layers` are the decoder layers, bottom first; without them no residual vector is taken."""
        self._linears = dict(linears)
        self._dtype = dtype
        self._layers, self._hidden_size = tuple(layers), hidden_size
        self._updates: dict[str, dict[str, LowRank]] = {}  # by module path, then by name
        self._shifts: dict[int, dict[str, Tensor]] = {}  # [H], by layer, then by name
        self._held: dict[int, dict[str, Held]] = {}
        self._hooks: dict[str | int, RemovableHandle] = {}
        self._present: tuple[_Rows, ...] = ()

    def load(self, name: str, contribution: Contribution) -> None:
        """All of it or nothing: every part is checked before the first is stored. Replaces what the name had."""
        ready = {path: self._checked(name, path, update) for path, update in contribution.low_rank.items()}
        shifts = {layer: self._checked_shift(name, layer, vector_H) for layer, vector_H in contribution.residual.items()}
        held = {layer: self._checked_held(name, layer, one) for layer, one in contribution.held.items()}
        self.unload(name)
        for path, update in ready.items():
            self._updates.setdefault(path, {})[name] = update
            if path not in self._hooks:
                self._hooks[path] = self._linears[path].register_forward_hook(self._hook(self._updates[path]))
        for layer, vector_H in shifts.items():
            self._shifts.setdefault(layer, {})[name] = vector_H
        for layer, one in held.items():
            self._held.setdefault(layer, {})[name] = one
        for layer in (shifts.keys() | held.keys()) - self._hooks.keys():
            hook = self._shift_hook(self._shifts.setdefault(layer, {}), self._held.setdefault(layer, {}))
            self._hooks[layer] = self._layers[layer].register_forward_hook(hook)

    def unload(self, name: str) -> None:
        for updates in self._updates.values():
            updates.pop(name, None)
        for shifts in self._shifts.values():
            shifts.pop(name, None)
        for held in self._held.values():
            held.pop(name, None)

    def close(self) -> None:
        """Removes every hook: the model computes as if the bank had never been."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._updates.clear()
        self._shifts.clear()
        self._held.clear()

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, row i of the batch computes with the update called `names[i]`."""
        self._present = tuple(self._split(names))
        try:
            yield
        finally:
            self._present = ()

    def _split(self, names: Sequence[str]) -> Iterator[_Rows]:
        for name in sorted(set(names) - {BASE}):
            rows = [row for row, owner in enumerate(names) if owner == name]
            device = next(iter(self._linears.values())).weight.device
            yield _Rows(name, None if len(rows) == len(names) else torch.tensor(rows, device=device))

    def _hook(self, updates: Mapping[str, LowRank]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for present in self._present:
                update = updates.get(present.name)
                if update is None:
                    continue
                if present.rows is None:
                    inner = linear(inputs[0], update.a_RI)
                    output.view(-1, output.shape[-1]).addmm_(inner.flatten(0, -2), update.b_OR.T)
                    if update.bias_O is not None:
                        output += update.bias_O
                else:
                    inner = linear(inputs[0].index_select(0, present.rows), update.a_RI)
                    output.index_add_(0, present.rows, linear(inner, update.b_OR, update.bias_O))

        return add

    def _shift_hook(
        self, shifts: Mapping[str, Tensor], held: Mapping[str, Held]
    ) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            # A bare tensor in some versions of transformers, a tuple that begins with it in others.
            states_BTH = output[0] if isinstance(output, tuple) else output
            assert isinstance(states_BTH, Tensor)
            for present in self._present:
                vector_H, one = shifts.get(present.name), held.get(present.name)
                rows = slice(None) if present.rows is None else present.rows
                if vector_H is not None:
                    states_BTH[rows] += vector_H.to(states_BTH)
                if one is not None:
                    states_BTH[rows] += (one.vector_H * one.hold.missing(states_BTH[rows])).to(states_BTH)

        return add

    def _checked_held(self, name: str, layer: int, held: Held) -> Held:
        vector_H, encoder_H = (self._checked_shift(name, layer, part) for part in (held.vector_H, held.hold.encoder_H))
        return Held(vector_H, replace(held.hold, encoder_H=encoder_H))

    def _checked_shift(self, name: str, layer: int, vector_H: Tensor) -> Tensor:
        if not 0 <= layer < len(self._layers) or vector_H.shape != (self._hidden_size,):
            raise RefusedAdapter(
                f"A residual vector stands after one of {len(self._layers)} layers of {self._hidden_size} numbers, but {name!r} "
                f"has shape {tuple(vector_H.shape)} after layer {layer}. Load the backbone that it was made on."
            )
        if not torch.isfinite(vector_H).all():
            raise DamagedAdapter(
                f"Vectors must be finite, but that of {name!r} after layer {layer} holds NaN or infinity. Make it again."
            )
        # In full precision: the residual stream is wider than what the linear layers compute in.
        return vector_H.detach().to(next(self._layers[layer].parameters()).device, torch.float32, copy=True)

    def _checked(self, name: str, path: str, update: LowRank) -> LowRank:
        target = self._linears.get(path)
        if target is None:
            raise RefusedAdapter(
                f"An adapter updates linear layers of this backbone, but {name!r} has weights for {path!r}, which is none of "
                f"its {len(self._linears)}. Load the backbone that it was fitted on."
            )
        if (update.a_RI.shape[1], update.b_OR.shape[0]) != (target.in_features, target.out_features):
            raise RefusedAdapter(
                f"{path} maps {target.in_features} to {target.out_features}, but the update of {name!r} maps "
                f"{update.a_RI.shape[1]} to {update.b_OR.shape[0]}. Load the backbone that it was fitted on."
            )
        if update.bias_O is not None and update.bias_O.shape != (target.out_features,):
            raise RefusedAdapter(
                f"{path} puts out {target.out_features} numbers, but the bias of {name!r} has {tuple(update.bias_O.shape)}. Load "
                "the backbone that it was fitted on."
            )
        parts = [part for part in (update.a_RI, update.b_OR, update.bias_O) if part is not None]
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise DamagedAdapter(
                f"Weights must be finite, but those of {name!r} at {path} hold NaN or infinity. The fit that made them "
                "diverged: fit again with a lower learning rate."
            )
        # A copy: live weights of a fit must not change under a running batch.
        return LowRank(*(part.detach().to(target.weight.device, self._dtype, copy=True) for part in parts))
