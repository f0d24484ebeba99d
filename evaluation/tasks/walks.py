"""Walks over a knowledge graph: what is at the end of so many hops, and what else could seem to be.

After the bottom-up curricula of Dedhia, Kansal and Jha (arXiv 2507.13966, sections 3 to 5): a self-avoiding uniform walk over
outgoing edges from a start to an end, with what lies between left unsaid. Their language models are replaced by rules.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

from evaluation.errors import DataError
from evaluation.overlap import words
from evaluation.task import Split, split_of
from evaluation.tasks.graph import Graph
from evaluation.tasks.lookalikes import Lookalikes

NUM_RIVALS = 3
_TRIES = 400  # at one walk of the asked length, before a graph counts as having none
_LOOKED_AT = 30  # targets of one hop that are tried for a false one from which the walk goes on
_MOST_HOPS = 12
_MAX_ENDS = 200  # a question that this many things answer is none


class NoPath(DataError):
    """A graph has no walk of the asked length that makes an item."""


@dataclass(frozen=True)
class Walk:
    """`nodes` from the start to the end, one more than relations; no node comes twice."""

    nodes: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def hops(self) -> int:
        return len(self.relations)

    @property
    def ends(self) -> str:
        """Start and end, whichever way the walk goes: a walk and its inverse are one, and so are two ways between the same."""
        return " | ".join(sorted((self.nodes[0], self.nodes[-1])))

    @property
    def split(self) -> Split | None:
        """By its ends. None for one that may be trained on by these, but of which a part of two hops or more is held out."""
        split = split_of(self.ends)
        if split != "train":
            return split
        parts = (
            Walk(self.nodes[start : stop + 1], self.relations[start:stop])
            for start in range(self.hops)
            for stop in range(start + 2, self.hops + 1)
        )
        return split if all(split_of(part.ends) == split for part in parts) else None


@dataclass(frozen=True)
class Mishap:
    """A hop to what the relation does not lead to, and the walk on from there; None where the relations lead nowhere from it."""

    wrong: str
    rest: tuple[str, ...] | None


@dataclass(frozen=True)
class Found:
    """A walk that makes an item. `rivals`: other ends of the last relation's type, which these relations do not lead to."""

    walk: Walk
    rivals: tuple[str, ...]
    mishaps: tuple[Mishap, ...]  # one a hop


@dataclass(frozen=True)
class Walks:
    """`graph` is cached by its owner: reading is slow, and happens at the first walk only."""

    graph: Callable[[], Graph]

    def draw(self, rng: random.Random, hops: int) -> Found:
        """A walk from a start drawn uniformly. Raises NoPath where many tries find none that makes an item.

        One that makes an item belongs to a split, no single edge joins its end to its start, its relations lead to the end in
        one way, its start does not name its end, and there are NUM_RIVALS other ends that seem possible. Where the relations
        lead from the start to several ends, the same one is always taken.
        """
        for walk in self.candidates(rng, hops):
            if found := self._surrounded(rng, walk):
                return found
        raise NoPath(
            f"An item of {hops} hop{'s' * (hops > 1)} needs a path of that length without a shortcut, and {NUM_RIVALS} other "
            f"ends of the same relation, but {_TRIES} tries found none in this graph of {self.graph().num_nodes} nodes. "
            f"{'Ask for fewer hops, or add' if hops > 1 else 'Add'} edges."
        )

    def candidates(self, rng: random.Random, hops: int) -> Iterator[Walk]:
        """Walks that make an item if there are rivals for them: the first is what `draw` tries first with the same `rng`."""
        starts = self._starts[min(hops, len(self._starts) - 1)]
        for _ in range(_TRIES if starts else 0):
            walk = self._walk(rng, rng.choice(starts), hops)
            if walk and (fair := self._fair(walk)):
                yield fair

    def _walk(self, rng: random.Random, start: str, hops: int) -> Walk | None:
        nodes, relations = [start], []
        for left in reversed(range(hops)):
            onward = self._reaches(left)
            edges = [edge for edge in self.graph().edges.get(nodes[-1], ()) if edge.tail in onward and edge.tail not in nodes]
            if not edges:
                return None
            relation, tail = rng.choice(edges)
            nodes.append(tail)
            relations.append(relation)
        return Walk(tuple(nodes), tuple(relations))

    def _fair(self, drawn: Walk) -> Walk | None:
        """The walk to the end that is always taken; None where that makes no item."""
        start, relations = drawn.nodes[0], drawn.relations
        ways = self._ways(start, relations)
        possible = [end for end, count in ways[-1].items() if count == 1 and end != start]
        if not possible or sum(ways[-1].values()) > _MAX_ENDS:
            return None
        end = min(possible, key=lambda one: hashlib.sha256("\n".join((start, *relations, one)).encode()).digest())
        walk = Walk(self._back(end, ways, relations), relations)
        joined = walk.hops > 1 and self.graph().are_joined(start, end)
        if joined or len(set(walk.nodes)) < len(walk.nodes) or set(words(end)) <= set(words(start)) or walk.split is None:
            return None
        return walk

    def _surrounded(self, rng: random.Random, walk: Walk) -> Found | None:
        ways = self._ways(walk.nodes[0], walk.relations)
        mishaps = self._mishaps(rng, walk, ways)
        rivals = self._rivals(rng, walk, mishaps, ways[-1])
        return Found(walk, rivals, mishaps) if len(rivals) == NUM_RIVALS else None

    def _ways(self, start: str, relations: Sequence[str]) -> list[Counter[str]]:
        """After each number of hops: what the relations lead to from the start, and in how many ways."""
        layers = [Counter((start,))]
        for relation in relations:
            following: Counter[str] = Counter()
            for node, count in layers[-1].items():
                for tail in self.graph().reached(node, relation):
                    following[tail] += count
            layers.append(following)
        return layers

    def _back(self, end: str, ways: Sequence[Counter[str]], relations: Sequence[str]) -> tuple[str, ...]:
        """The one way that leads to the end."""
        nodes = [end]
        for layer, relation in zip(reversed(ways[:-1]), reversed(relations), strict=True):
            nodes.append(next(node for node in layer if nodes[-1] in self.graph().reached(node, relation)))
        return tuple(reversed(nodes))

    def _mishaps(self, rng: random.Random, walk: Walk, ways: Sequence[Counter[str]]) -> tuple[Mishap, ...]:
        """For each hop a false one of the same type, if possible one from which the other relations lead to a wrong end."""
        found = []
        for place, ((node, tail), relation) in enumerate(zip(pairwise(walk.nodes), walk.relations, strict=True)):
            right = {*self.graph().reached(node, relation), *walk.nodes, *ways[place + 1]}
            alike = islice(self._lookalikes.of(rng, tail, relation), _LOOKED_AT)
            false = [other for other in alike if other not in right]
            led = ((wrong, self._on(rng, wrong, walk, place + 1, ways[-1])) for wrong in false)
            wrong, rest = next(((wrong, rest) for wrong, rest in led if rest is not None), (false[0] if false else "", None))
            if not wrong:
                return ()
            found.append(Mishap(wrong, rest))
        return tuple(found)

    def _on(self, rng: random.Random, node: str, walk: Walk, place: int, right: Counter[str]) -> tuple[str, ...] | None:
        """The nodes that the walk's relations from that place on lead to, up to an end that is not a right one."""
        nodes = [node]
        for relation in walk.relations[place:]:
            tails = [tail for tail in self.graph().reached(nodes[-1], relation) if tail not in nodes and tail not in walk.nodes]
            if not tails:
                return None
            nodes.append(rng.choice(tails))
        return None if nodes[-1] in right else tuple(nodes[1:])

    def _rivals(self, rng: random.Random, walk: Walk, mishaps: Sequence[Mishap], right: Counter[str]) -> tuple[str, ...]:
        """What false hops in the middle lead to, then what is called like the end."""
        led = [mishap.rest[-1] for mishap in mishaps if mishap.rest]
        alike = self._lookalikes.of(rng, walk.nodes[-1], walk.relations[-1])
        wrong = (name for name in (*led[:1], *alike) if name not in right and name not in walk.nodes)
        return tuple(islice(dict.fromkeys(wrong), NUM_RIVALS)) if mishaps else ()

    def _reaches(self, hops: int) -> dict[str, None]:
        """The nodes from which so many edges follow each other, in the graph's order; all nodes for none."""
        return self._reached_by[min(hops, len(self._reached_by) - 1)]

    @cached_property
    def _lookalikes(self) -> Lookalikes:
        return Lookalikes(self.graph().ends)

    @cached_property
    def _reached_by(self) -> list[dict[str, None]]:
        edges = self.graph().edges
        ends = sorted({edge.tail for tails in edges.values() for edge in tails} - edges.keys())
        found = [dict.fromkeys((*edges, *ends))]
        while len(found) <= _MOST_HOPS and found[-1]:
            found.append({node: None for node, tails in edges.items() if any(edge.tail in found[-1] for edge in tails)})
        return found

    @cached_property
    def _starts(self) -> list[tuple[str, ...]]:
        return [tuple(nodes) for nodes in self._reached_by]
