"""The adapter bank: what many profiles add inside one model, each applied to its own rows of a batch.

Every loaded profile lies packed on a shelf in main memory. Those that rows run under are also in the bank: their low-rank pairs
stand in stacks of pages, module by module, and a forward multiplies all rows at once, so that it takes as many operations for
eight adapters as for one. Where the bank is full, the profile that has been idle longest leaves it for the shelf.

Nothing here locks: calls come between forwards, from the thread that runs them. `pack` alone may be called from any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.adapter import Contribution
from adapters.errors import RefusedAdapter
from engine.engine import BankStats
from engine.packed import Fits, Packed
from engine.pages import PAGE, Pages
from engine.placing import Placing
from engine.row_vectors import RowVectors, layers_of
from engine.stacks import Stacks, Writing

BASE = ""  # the name of rows without any update
_KEPT = 8  # compositions of a batch that are remembered


@dataclass(frozen=True)
class BankLimits:
    """`adapters` bounds how many different low-rank adapters run at the same time, `bytes` what they take in the bank.

    `loaded_bytes` bounds what all loaded profiles take on the shelf; a profile beyond that is refused.
    """

    adapters: int = 32
    bytes: int = 2**30
    loaded_bytes: int = 2**32

    def __post_init__(self) -> None:
        for name in ("adapters", "bytes", "loaded_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"A bank's `{name}` must be at least 1, but got {getattr(self, name)}.")


@dataclass(frozen=True)
class _Batch:
    """The rows of one forward."""

    placing: Placing | None
    vectors: Mapping[int, RowVectors]  # by layer


class AdapterBank:
    """Hooks sit on the modules that a loaded profile targets, and do nothing for rows of the base."""

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        dtype: torch.dtype,
        layers: Sequence[nn.Module] = (),
        hidden_size: int = 0,
        groups: Sequence[Sequence[str]] = (),
        limits: BankLimits | None = None,
    ) -> None:
        """`layers` are the decoder layers, bottom first; without them no residual vector is taken.

        `groups` are the paths of linears that read the same tensor; see engine.shared_inputs.
        """
        self._linears, self._layers, self._groups = dict(linears), tuple(layers), tuple(groups)
        self._fits = Fits(self._linears, dtype, len(self._layers), hidden_size)
        self._limits = BankLimits() if limits is None else limits
        places = [next(module.parameters()).device for module in (*self._linears.values(), *self._layers)]
        self._device = places[0] if places else torch.device("cpu")
        # Products of few rows cost little more for being wide where the weights' way to the unit is what takes the time.
        self._is_wide_cheap = dtype != torch.float32 or self._device.type != "cpu"
        self._shelf: dict[str, Packed] = {}
        self._stacks = Stacks({}, (), (), dtype)
        self._pages = Pages(1, self._limits.adapters)
        self._hooks: list[RemovableHandle] = []
        self._batches: dict[tuple[str, ...], _Batch] = {}
        self._now: _Batch | None = None
        self._hits, self._loads, self._evictions = Counter[str](), Counter[str](), Counter[str]()

    def pack(self, name: str, contribution: Contribution) -> Packed:
        """A checked copy, for `put`. RefusedAdapter or DamagedAdapter says what is wrong with it."""
        return self._fits.pack(name, contribution)

    def load(self, name: str, contribution: Contribution) -> None:
        """All of it or nothing: every part is checked before the first is stored. Replaces what the name had."""
        self.put(name, self.pack(name, contribution))

    def put(self, name: str, packed: Packed, running: Collection[str] = ()) -> None:
        """On the shelf; it comes into the bank with its first row. Those of `running` must still fit in together."""
        self._refuse_too_large(name, packed, running)
        self._pages.give(name)
        self._shelf = {**self._shelf, name: packed}  # replaced whole: stats are read from other threads
        self._batches.clear()
        if not self._stacks.paths >= packed.updates.keys():
            self._restack()
        self._hook_up()

    def unload(self, name: str) -> None:
        self._shelf = {other: packed for other, packed in self._shelf.items() if other != name}
        self._pages.give(name)
        self._batches.clear()
        for counts in (self._hits, self._loads, self._evictions):
            counts.pop(name, None)  # names that come and go leave no counts
        if not any(one.updates for one in self._shelf.values()):
            self._restack()
        self._hook_up()

    def admit(self, name: str, running: Collection[str]) -> bool:
        """Brings the name into the bank for a row that joins; False where those of `running` leave it no room."""
        packed = self._shelf.get(name)
        if packed is None or not packed.updates:
            return True
        if name in self._pages:
            self._hits[name] += 1
        elif not self._pages.has_room(packed.num_pages, running):
            return False
        self._bring([name], running)
        return True

    def groups(self, names: Sequence[str]) -> list[list[int]]:
        """Places of these rows, in as many groups as their adapters need to stand in the bank together."""
        found: list[list[int]] = [[]]
        pages: dict[str, int] = {}
        for place in sorted(range(len(names)), key=names.__getitem__):
            packed = self._shelf.get(names[place])
            if packed is not None and packed.updates and names[place] not in pages:
                if len(pages) == self._limits.adapters or 1 + sum(pages.values()) + packed.num_pages > self._pages.max_pages:
                    found.append([])
                    pages = {}
                pages[names[place]] = packed.num_pages
            found[-1].append(place)
        return [sorted(group) for group in found]

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, row i of the batch computes with the update called `names[i]`."""
        key = tuple(names)
        if key not in self._batches:
            found = self._batch(key)  # clears what is remembered where pages change hands
            if len(self._batches) >= _KEPT:
                self._batches.clear()
            self._batches[key] = found
        self._now = self._batches[key]
        try:
            yield
        finally:
            self._now = None
            self._stacks.forget()

    def stats(self) -> BankStats:
        return BankStats(
            resident=len(self._pages),
            loaded=len(self._shelf),
            is_resident={name: name in self._pages for name, packed in self._shelf.items() if packed.updates},
            hits=dict(self._hits),
            loads=dict(self._loads),
            evictions=dict(self._evictions),
            resident_bytes=self._stacks.num_pages * self._stacks.page_bytes,
            loaded_bytes=self._loaded_bytes(self._shelf),
        )

    def close(self) -> None:
        """Removes every hook: the model computes as if the bank had never been."""
        self._shelf = {}
        self._restack()
        self._hook_up()

    def _batch(self, names: tuple[str, ...]) -> _Batch:
        present = [name for name in dict.fromkeys(names) if name in self._shelf and self._shelf[name].updates]
        self._bring(present, present)
        if self._is_wide_cheap and (moves := self._pages.gathered(present)):
            self._stacks.move(moves)
            self._batches.clear()
        placing = Placing.of([self._pages.of(name) for name in names], self._device, is_wide_cheap=self._is_wide_cheap)
        rows = [self._shelf.get(name) for name in names]
        layers = layers_of({name: self._shelf[name] for name in names if name in self._shelf})
        found = {layer: RowVectors.of(layer, rows, self._device) for layer in layers}
        return _Batch(placing, {layer: vectors for layer, vectors in found.items() if vectors is not None})

    def _bring(self, names: Sequence[str], keep: Collection[str]) -> None:
        """Into the bank. Of `keep` nobody leaves while there is room without; these names never do."""
        for name in names:
            if name in self._pages:
                self._pages.use(name)
                continue
            packed = self._shelf[name]
            kept = {*keep, name}
            if not self._pages.has_room(packed.num_pages, kept):
                raise RefusedAdapter(
                    f"The adapters of one forward stand in the bank together, at most {self._limits.adapters} and in "
                    f"{_mebibytes(self._limits.bytes)}, but {len(names)} do not fit. Ask for fewer at once, or raise the limit."
                )
            gone = self._pages.take(name, packed.num_pages, kept)
            self._stacks.reserve(self._pages.size, self._pages.max_pages)
            self._stacks.write(self._pages.of(name), packed)
            self._batches.clear()
            self._loads[name] += 1
            self._evictions.update(gone)

    def _restack(self) -> None:
        """Empty stacks for the modules that any loaded profile targets; rows bring theirs in again."""
        paths = {path for one in self._shelf.values() for path in one.updates}
        self._stacks = Stacks(self._linears, self._groups, paths, self._fits.dtype)
        self._pages = Pages(self._max_pages(self._stacks.page_bytes), self._limits.adapters)
        self._batches.clear()

    def _max_pages(self, page_bytes: int) -> int:
        return 1 + (self._limits.bytes // page_bytes if page_bytes else 0)

    def _hook_up(self) -> None:
        """On the modules that loaded profiles target, and on no other."""
        for hook in self._hooks:
            hook.remove()
        layers = layers_of(self._shelf)
        self._hooks = [self._linears[writing.path].register_forward_hook(self._update_hook(writing)) for writing in self._stacks]
        self._hooks += [self._layers[layer].register_forward_hook(self._vector_hook(layer)) for layer in layers]

    def _update_hook(self, writing: Writing) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._now is not None and self._now.placing is not None:
                writing.add(self._now.placing, inputs[0], output)

        return add

    def _vector_hook(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            vectors = None if self._now is None else self._now.vectors.get(layer)
            if vectors is None:
                return
            # A bare tensor in some versions of transformers, a tuple that begins with it in others.
            states_BTH = output[0] if isinstance(output, tuple) else output
            assert isinstance(states_BTH, Tensor)
            vectors.add(states_BTH)

        return add

    def _refuse_too_large(self, name: str, packed: Packed, running: Collection[str]) -> None:
        shelf = {**self._shelf, name: packed}
        taken = self._loaded_bytes(shelf)
        if taken > self._limits.loaded_bytes:
            raise RefusedAdapter(
                f"Loaded profiles take at most {_mebibytes(self._limits.loaded_bytes)}, but with {name!r} it would be "
                f"{_mebibytes(taken)}. Unload another first, or raise the limit."
            )
        paths = {path for one in shelf.values() for path in one.updates} | self._stacks.paths
        page_bytes = sum(self._page_bytes(path) for path in paths)
        for other, one in shelf.items():
            if one.updates and 1 + one.num_pages > self._max_pages(page_bytes):
                raise RefusedAdapter(
                    f"An adapter stands in the bank whole, in at most {_mebibytes(self._limits.bytes)}, but with {name!r} loaded "
                    f"{other!r} takes {_mebibytes(one.num_pages * page_bytes)}. Raise the limit, or fit a lower rank."
                )

        together = [shelf[one] for one in running if one in shelf and shelf[one].updates]
        if paths != self._stacks.paths and 1 + sum(one.num_pages for one in together) > self._max_pages(page_bytes):
            raise RefusedAdapter(
                f"{name!r} updates modules that no loaded adapter has, which makes every page of the bank larger: the "
                f"{len(together)} adapters that run now would not fit into {_mebibytes(self._limits.bytes)}. Load it when fewer "
                "run, or raise the limit."
            )

    def _page_bytes(self, path: str) -> int:
        """At most, where no other module shares what it reads."""
        module = self._linears[path]
        return (PAGE * (module.in_features + module.out_features) + module.out_features) * self._fits.dtype.itemsize

    @staticmethod
    def _loaded_bytes(shelf: Mapping[str, Packed]) -> int:
        return sum(one.num_bytes for one in shelf.values())


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"
