"""Token sequences that share their beginnings, as one tree whose nodes are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Legend: N nodes

_ROOT = -1


@dataclass
class Trie:
    """Nodes in the order in which they came, so that a parent always stands before its children.

    A key is a token id, or any number that stands for a soft thought; equal keys at equal places are one node.
    """

    keys: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def shared(self, keys: Iterable[int]) -> int:
        """How many of the first keys are here already."""
        node, count = _ROOT, 0
        for key in keys:
            found = self._children.get((node, key))
            if found is None:
                break
            node, count = found, count + 1
        return count

    def add(self, keys: Iterable[int]) -> list[int]:
        """The node of every key, new or found."""
        node, path = _ROOT, []
        for depth, key in enumerate(keys):
            found = self._children.get((node, key))
            if found is None:
                found = len(self.keys)
                self._children[node, key] = found
                self.keys.append(key)
                self.depths.append(depth)
                self.parents.append(node)
            node = found
            path.append(node)
        return path

    def ancestors_NN(self) -> Tensor:
        """True where the column is the row itself or stands above it."""
        reads_NN = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != _ROOT:
                reads_NN[node] |= reads_NN[parent]
        return reads_NN


@dataclass(frozen=True)
class Place:
    """Where one sequence lies: its tree, and the node of each of its keys."""

    tree: int
    nodes: tuple[int, ...]


def plant(sequences: Sequence[Sequence[int]], prefixes: Sequence[int], max_nodes: int) -> tuple[list[Trie], list[Place]]:
    """Trees for the sequences in their order. One that shares at least half of its first `prefix` keys joins the last tree."""
    trees: list[Trie] = []
    places: list[Place] = []
    for keys, prefix in zip(sequences, prefixes, strict=True):
        shared = trees[-1].shared(keys) if trees else 0
        fits = trees and len(trees[-1]) + len(keys) - shared <= max_nodes
        if not (fits and 2 * shared >= min(prefix, len(keys))):
            trees.append(Trie())
        places.append(Place(len(trees) - 1, tuple(trees[-1].add(keys))))
    return trees, places


def batches(sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices, the longest first, such that a batch padded to its longest holds at most `max_tokens` (or one alone)."""
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if batch and (len(batch) + 1) * sizes[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
