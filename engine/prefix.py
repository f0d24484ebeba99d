"""The prefix cache's index: which blocks of which texts are kept, shared by texts that begin alike, the least recently used out.

A block is found by what stands in it and by all that stands before it, under the weights that read it. Nothing is hashed down
to a digest but soft thoughts, so that a block is never taken for another's.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from adapters.adapter import Prompt

# Legend: K thoughts, H hidden

BLOCK = 16  # tokens


class Reader(NamedTuple):
    """Whose keys and values they are: the weights that read, and the tenant that they are kept for."""

    source: int  # a number that the engine gives to weights at their load and never again; 0: the backbone alone
    salt: str = ""


class Content(NamedTuple):
    """What stands in one block."""

    ids: tuple[int, ...]
    soft_at: int = 0
    soft: bytes = b""  # a digest of the soft thoughts in it


@dataclass(frozen=True)
class Text:
    """What a seat reads, to be compared with what another reads."""

    ids: tuple[int, ...]
    soft_at: int
    soft: bytes
    reader: Reader
    layer: int | None = None  # whose states are read beside

    @classmethod
    def of(cls, prompt: Prompt, reader: Reader, layer: int | None = None) -> Text:
        return cls(prompt.ids, prompt.soft_at, _digest(prompt.soft_KH), reader, layer)


def contents(prompt: Prompt, written: Sequence[int] = ()) -> list[Content]:
    """The whole blocks of a prompt and of what was written after it."""
    whole = replace(prompt, ids=(*prompt.ids, *written))
    parts = (whole.part(low, low + BLOCK) for low in range(0, len(whole.ids) - BLOCK + 1, BLOCK))
    return [Content(part.ids, part.soft_at, _digest(part.soft_KH)) for part in parts]


def _digest(soft_KH: Tensor | None) -> bytes:
    return b"" if soft_KH is None else hashlib.sha256(soft_KH.detach().float().cpu().numpy().tobytes()).digest()


_Key = tuple["int | Reader", Content]  # what stands before, as a node's number or as the reader of a text's first block


class _Node(NamedTuple):
    number: int  # never used again
    block: int  # its place in the pool
    reader: Reader


class PrefixIndex:
    """A tree of blocks. A child is always less recently used than its parent, so that what is oldest is always a leaf."""

    def __init__(self, max_blocks: int) -> None:
        self._max = max_blocks
        self._nodes: OrderedDict[_Key, _Node] = OrderedDict()  # the least recently used first
        self._free: list[int] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, reader: Reader, wanted: Sequence[Content]) -> list[int]:
        """Places of the longest beginning that is kept; it has been used now."""
        path = self._path(reader, wanted)
        self._touch(path)
        return [self._nodes[key].block for key in path]

    def add(self, reader: Reader, wanted: Sequence[Content]) -> tuple[int, list[int]]:
        """How many of the first blocks are kept already, and the places that the others get, as far as there is room."""
        wanted = wanted[: self._max]
        path = self._path(reader, wanted)
        self._touch(path)
        known = len(path)
        for content in wanted[known:]:
            key: _Key = (self._nodes[path[-1]].number if path else reader, content)
            self._nodes[key] = _Node(next(self._numbers), self._place(), reader)
            path.append(key)
        self._touch(path)
        return known, [self._nodes[key].block for key in path[known:]]

    def drop(self, leaves: Callable[[Reader], bool]) -> None:
        """Everything that these readers have read."""
        for key in [key for key, node in self._nodes.items() if leaves(node.reader)]:
            self._free.append(self._nodes.pop(key).block)

    def _path(self, reader: Reader, wanted: Sequence[Content]) -> list[_Key]:
        path: list[_Key] = []
        before: int | Reader = reader
        for content in wanted:
            node = self._nodes.get((before, content))
            if node is None:
                break
            path.append((before, content))
            before = node.number
        return path

    def _touch(self, path: Sequence[_Key]) -> None:
        for key in reversed(path):
            self._nodes.move_to_end(key)

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._nodes) < self._max:
            return len(self._nodes)
        return self._nodes.popitem(last=False)[1].block
