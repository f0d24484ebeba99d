"""The stacked weights of the bank: pages of A by what the modules read, pages of B by module, and the two products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.packed import Packed
from engine.pages import PAGE
from engine.placing import Placing

# Legend: B rows, T tokens, N rows and their tokens, P pages, M modules of one input, R ranks of a page, I in, O out


class Reading:
    """Modules that read the same tensor: A is multiplied once for all of them, at the first."""

    def __init__(self, paths: Sequence[str], linears: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
        first = linears[paths[0]]
        self.paths = tuple(paths)
        self.dtype, self._width = dtype, first.in_features
        self.a_PXI = torch.zeros(1, len(paths) * PAGE, self._width, dtype=dtype, device=first.weight.device)  # X: M, R
        self._read: Tensor | None = None
        self._inner: tuple[Tensor, ...] = ()
        self.is_spanning = False
        self._left = 0

    def inner(self, module: int, placing: Placing, x_BTI: Tensor) -> Tensor:
        """What A of this module makes of its input: [N, P * R] where it `is_spanning`, else [B, T, K * R]."""
        if self._read is not x_BTI:
            num_tokens = x_BTI.numel() // (placing.num_rows * self._width)
            self.is_spanning = placing.spans(num_tokens)
            multiplied = self._spanning if self.is_spanning else self._gathered
            self._read, self._inner, self._left = x_BTI, multiplied(placing, x_BTI.to(self.dtype)), len(self.paths)
        found = self._inner[module]
        self._left -= 1
        if not self._left:
            self.forget()
        return found

    def forget(self) -> None:
        self._read, self._inner = None, ()

    def grow(self, num_pages: int) -> None:
        self.a_PXI = _grown(self.a_PXI, num_pages)

    def move(self, moves: Mapping[int, int]) -> None:
        _move(self.a_PXI, moves)

    @property
    def page_bytes(self) -> int:
        return self.a_PXI[0].nbytes

    def _spanning(self, placing: Placing, x_BTI: Tensor) -> tuple[Tensor, ...]:
        """Of each module."""
        modules, span = len(self.paths), placing.last - placing.first
        a_XI = self.a_PXI[placing.first : placing.last].view(-1, self._width)
        wide_NX = linear(x_BTI.reshape(-1, self._width), a_XI)
        if placing.foreign_BP is not None:
            # Filled, not multiplied: zero times another row's infinity would be NaN.
            wide_NX.view(placing.num_rows, -1, span, modules * PAGE).masked_fill_(placing.foreign_BP[:, None, :, None], 0)
        if modules == 1:
            return (wide_NX,)
        return wide_NX.view(-1, span, modules, PAGE).transpose(0, 2).transpose(1, 2).reshape(modules, -1, span * PAGE).unbind()

    def _gathered(self, placing: Placing, x_BTI: Tensor) -> tuple[Tensor, ...]:
        """Of each module."""
        modules, rows, count = len(self.paths), placing.num_rows, placing.width
        a_BXI = self.a_PXI.index_select(0, placing.pages_N).view(rows, -1, self._width)
        inner_BTX = torch.bmm(x_BTI.reshape(rows, -1, self._width), a_BXI.transpose(1, 2))
        if modules == 1:
            return (inner_BTX,)
        inner_MBTKR = inner_BTX.view(rows, -1, count, modules, PAGE).permute(3, 0, 1, 2, 4)
        return inner_MBTKR.reshape(modules, rows, -1, count * PAGE).unbind()


class Writing:
    """One module's B, and the biases, each at the first page of its adapter."""

    def __init__(self, reading: Reading, path: str, target: nn.Linear) -> None:
        self.reading, self.path = reading, path
        self._module, self._width = reading.paths.index(path), target.out_features
        self.b_PRO = torch.zeros(1, PAGE, self._width, dtype=reading.dtype, device=target.weight.device)
        self.bias_PO: Tensor | None = None  # until an adapter has one
        self._seen: Placing | None = None
        self._b_XO = self.b_PRO[0]  # of the placing seen last: a view is made once for all steps of the same rows

    def add(self, placing: Placing, x_BTI: Tensor, output_BTO: Tensor) -> None:
        """Adds each row's update to what the layer puts out for it, in place."""
        inner = self.reading.inner(self._module, placing, x_BTI)
        if self.reading.is_spanning:
            if self._seen is not placing:
                self._seen, self._b_XO = placing, self.b_PRO[placing.first : placing.last].view(-1, self._width)
            output_BTO.view(-1, self._width).addmm_(inner, self._b_XO)
        else:
            b_BXO = self.b_PRO.index_select(0, placing.pages_N).view(placing.num_rows, -1, self._width)
            output_BTO.view(placing.num_rows, -1, self._width).baddbmm_(inner, b_BXO)
        if self.bias_PO is not None:
            bias_B1O = self.bias_PO.index_select(0, placing.leading_B)[:, None]
            output_BTO.view(placing.num_rows, -1, self._width).add_(bias_B1O)

    def put_bias(self, pages: Sequence[int], bias_O: Tensor | None) -> None:
        if self.bias_PO is None:
            if bias_O is None:
                return
            self.bias_PO = self.b_PRO.new_zeros(len(self.b_PRO), self.b_PRO.shape[-1])
        self.bias_PO[list(pages)] = 0
        if bias_O is not None:
            self.bias_PO[pages[0]] = bias_O.to(self.bias_PO)

    def grow(self, num_pages: int) -> None:
        self.b_PRO, self._seen = _grown(self.b_PRO, num_pages), None
        self.bias_PO = None if self.bias_PO is None else _grown(self.bias_PO, num_pages)

    def move(self, moves: Mapping[int, int]) -> None:
        _move(self.b_PRO, moves)
        if self.bias_PO is not None:
            _move(self.bias_PO, moves)

    @property
    def page_bytes(self) -> int:
        """With room for a bias."""
        return self.b_PRO[0].nbytes + self.b_PRO[0, 0].nbytes


class Stacks:
    """Every page of every module. Pages that no adapter holds are never read."""

    def __init__(
        self, linears: Mapping[str, nn.Linear], groups: Iterable[Sequence[str]], paths: Iterable[str], dtype: torch.dtype
    ) -> None:
        """`groups` are paths that read one tensor; those of `paths` that are in none read alone."""
        self.num_pages = 1
        targeted, known = set(paths), dict[str, None]()
        grouped = [[path for path in group if path in targeted] for group in groups]
        for group in grouped:
            known |= dict.fromkeys(group)
        alone = [[path] for path in sorted(targeted - known.keys())]
        self._readings = [Reading(group, linears, dtype) for group in (*grouped, *alone) if group]
        self._writings = {path: Writing(reading, path, linears[path]) for reading in self._readings for path in reading.paths}

    @property
    def _parts(self) -> tuple[Reading | Writing, ...]:
        return (*self._readings, *self._writings.values())

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self._writings)

    @property
    def page_bytes(self) -> int:
        """Of one page in all modules."""
        return sum(part.page_bytes for part in self._parts)

    def __iter__(self) -> Iterator[Writing]:
        return iter(self._writings.values())

    @torch.inference_mode()
    def write(self, pages: Sequence[int], packed: Packed) -> None:
        """Every number of these pages, in every module: nothing of who had them before stays."""
        for reading in self._readings:
            for module, path in enumerate(reading.paths):
                update, writing = packed.updates.get(path), self._writings[path]
                ranks = slice(module * PAGE, (module + 1) * PAGE)
                writing.put_bias(pages, None if update is None else update.bias_O)
                count = 0 if update is None else len(update.a_KRI)
                for place, page in enumerate(pages):
                    if update is None or place >= count:
                        reading.a_PXI[page, ranks] = 0
                        writing.b_PRO[page] = 0
                    else:
                        reading.a_PXI[page, ranks].copy_(update.a_KRI[place])
                        writing.b_PRO[page].copy_(update.b_KRO[place])

    @torch.inference_mode()
    def reserve(self, num_pages: int, max_pages: int) -> None:
        """Room for so many pages, and for as many again as there were, so that growing is rare. What is there stays."""
        if num_pages > self.num_pages:
            self.num_pages = min(max_pages, max(num_pages, 2 * self.num_pages))
            for part in self._parts:
                part.grow(self.num_pages)

    @torch.inference_mode()
    def move(self, moves: Mapping[int, int]) -> None:
        """Every page to where it belongs now, all at once."""
        for part in self._parts:
            part.move(moves)

    def forget(self) -> None:
        """Lets go of the last forward's tensors."""
        for reading in self._readings:
            reading.forget()


def _grown(pages_PXY: Tensor, count: int) -> Tensor:
    larger = pages_PXY.new_zeros(count, *pages_PXY.shape[1:])
    larger[: len(pages_PXY)] = pages_PXY
    return larger


def _move(pages_PXY: Tensor, moves: Mapping[int, int]) -> None:
    pages_PXY[list(moves.values())] = pages_PXY[list(moves)]
