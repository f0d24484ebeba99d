"""A knowledge graph as a task: questions over several hops, with typed distractors, the path as their trace, held-out paths.

Training items take one to three hops, all others two to five: on paths that no training item takes, either way round, and one in
four of them in a wording that none has. `graph:icd10` is the tree of ICD-10-CM with its notes; any other graph is named in a task
file (evaluation.tasks.graph_file).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from evaluation.errors import DataError
from evaluation.overlap import ngrams, words
from evaluation.task import Example, Split
from evaluation.tasks import icd10_graph
from evaluation.tasks.generated import Consequence, GeneratedTask, Problem
from evaluation.tasks.graph import Graph
from evaluation.tasks.walks import Found, NoPath, Walk, Walks

PREFIX = "graph:"
HOPS, HELD_OUT_HOPS, MOST_HOPS = (1, 2, 3), (2, 3, 4, 5), 8
POOL = 2000  # training items: so many are kept apart from the others by their runs of words too
RUN = 18  # words in a row that no training question shares with another split's
_DRY = 400  # draws in a row that bring nothing new before a graph counts as exhausted
_MOST_FACTS = 200
_WORDINGS = (
    "Start at {start} and follow: {chain}. Where do you arrive?",
    "Given is {start}. Take {chain}. What is found there?",
    "From {start}, go along {chain}. Name the end.",
    "Which of these does {start} lead to by {chain}?",
)
_JOINED = (" > ", ", then ", ", and from there ", ", next ")


@dataclass(frozen=True)
class GraphTask(GeneratedTask):
    """`make` draws from `walks`. An example's group is its path's start and end: no two splits share one, either way round.

    Training items are a pool of at most POOL; the splits that are held out draw without end. Every draw takes starts by
    1 / (1 + how often they were taken), and no end much more often than the others. `digest` is of the graph's edges.
    """

    walks: Walks = Walks(icd10_graph.graph)
    held_out_lengths: tuple[int, ...] = HELD_OUT_HOPS
    file: str | None = None  # the graph's, relative to the task file; None for the built-in one

    def at_length(self, *lengths: int) -> GraphTask:
        return replace(self, lengths=lengths, held_out_lengths=lengths)

    def example(self, example_id: str) -> Example:
        problem = self.problem(example_id)
        choices = [problem.answer, *problem.rivals]
        random.Random(f"choices/{example_id}").shuffle(choices)
        return Example(
            id=example_id,
            question=problem.question,
            answer=problem.answer,
            choices=tuple(choices),
            rationale="\n".join(problem.steps),
            group=self.found(example_id).walk.ends,
        )

    def found(self, example_id: str) -> Found:
        """The walk behind an example's id: its gold path, before any shift."""
        return _drawn_before(self.walks, example_id, self.length(example_id))

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        if split == "train":
            pool = list(self._pool)
            random.Random(f"{self.name}/train/{seed}").shuffle(pool)
            return pool[: max(0, count)]
        drawn = (example for example in self._drawn(split, seed, count) if self._is_apart(example))
        return [example for example, _ in zip(drawn, range(count), strict=False)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all edges: what a run's record says it was fitted on."""
        edges = sorted((head, *edge) for head, tails in self.walks.graph().edges.items() for edge in tails)
        return hashlib.sha256(repr(edges).encode()).hexdigest()

    @cached_property
    def _pool(self) -> tuple[Example, ...]:
        drawn = self._drawn("train", 0, POOL)
        return tuple(example for example, _ in zip(drawn, range(POOL), strict=False))

    def _is_apart(self, example: Example) -> bool:
        runs = _runs(example)
        return not runs or self._shared.isdisjoint(runs)

    @cached_property
    def _shared(self) -> frozenset[str]:
        return frozenset(run for example in self._pool for run in _runs(example))

    def _drawn(self, split: Split, seed: int, count: int) -> Iterator[Example]:
        """Items of a split, none of a path that came before, of every length as many as there are."""
        open_lengths = dict.fromkeys(self.lengths if split == "train" else self.held_out_lengths, 0)  # to draws without an item
        starts, ends, groups = Counter[str](), Counter[str](), set[str]()
        held_out, index = self.num_wordings - 1, 0
        while open_lengths and index < 200 * (count + 10):
            hops = random.Random(f"{self.name}/{split}/{seed}/{len(groups)}").choice(list(open_lengths))
            rng = random.Random(f"{self.name}/{split}/{seed}/{index}/{hops}")
            wording = held_out if self.held_out_wording else rng.randrange(held_out if split == "train" else self.num_wordings)
            example_id = f"{self.name}/{seed}/{split}.{index}/{hops}/{wording}"
            index, open_lengths[hops] = index + 1, open_lengths[hops] + 1
            if open_lengths[hops] >= _DRY:
                del open_lengths[hops]
                continue
            walk = next(self.walks.candidates(random.Random(example_id), hops), None)
            if walk is None or walk.split != split or walk.ends in groups:
                continue
            if rng.random() * (1 + starts[walk.nodes[0]]) > 1:
                continue
            if ends[walk.nodes[-1]] >= 1 + 2 * ends.total() / max(1, len(ends)):
                continue
            if self.found(example_id).walk != walk:  # there were no rivals for it
                continue
            open_lengths[hops] = 0
            groups.add(walk.ends)
            starts[walk.nodes[0]] += 1
            ends[walk.nodes[-1]] += 1
            yield self.example(example_id)


@lru_cache(maxsize=10_000)
def _drawn_before(walks: Walks, example_id: str, hops: int) -> Found:
    return walks.draw(random.Random(example_id), hops)


def _runs(example: Example) -> list[str]:
    return ngrams(words(example.question), RUN)


@dataclass(frozen=True)
class Asked:
    """Makes the problem of a walk; the like of `Make` for a graph."""

    walks: Walks

    def __call__(self, rng: random.Random, num_steps: int, wording: int) -> Problem:
        found = self.walks.draw(rng, num_steps)
        walk, steps = found.walk, _steps(found.walk)
        corrupted, consequences = [], list[Consequence | None]()
        for place, mishap in enumerate(found.mishaps):
            wrong = Walk((walk.nodes[place], mishap.wrong, *(mishap.rest or ())), walk.relations[place:])
            corrupted.append(_steps(wrong)[0])
            rest = Consequence(_steps(wrong)[1:], wrong.nodes[-1]) if mishap.rest is not None else None
            consequences.append(rest)
        start, chain = walk.nodes[0], _JOINED[wording].join(walk.relations)
        return Problem(
            question=_WORDINGS[wording].format(start=start, chain=chain),
            steps=steps,
            corrupted=tuple(corrupted),
            answer=walk.nodes[-1],
            rivals=found.rivals,
            facts=self._facts(walk),
            consequences=tuple(consequences),
            concludes=r"-> ((?:(?!-> ).)+?)\W*$",
        )

    def _facts(self, walk: Walk) -> tuple[str, ...]:
        """What else the graph says of the things on the way."""
        edges = self.walks.graph().edges
        stated = (_step(node, *edge) for node in walk.nodes for edge in edges.get(node, ()))
        return tuple(fact for fact, _ in zip(stated, range(_MOST_FACTS), strict=False))


def _steps(walk: Walk) -> tuple[str, ...]:
    return tuple(_step(*hop) for hop in zip(walk.nodes, walk.relations, walk.nodes[1:], strict=False))


def _step(head: str, relation: str, tail: str) -> str:
    return f"{head} -> {relation} -> {tail}"


def of_graph(name: str, graph: Graph, hops: tuple[int, ...] = (), held_out_hops: tuple[int, ...] = ()) -> GraphTask:
    """A task over a graph in memory. Raises NoPath as `over` does, and DataError for lengths that no task can have."""
    check_lengths(hops, held_out_hops)
    return over(name, Walks(lambda: graph), hops, held_out_hops)


def check_lengths(hops: tuple[int, ...], held_out_hops: tuple[int, ...] = ()) -> None:
    if strange := [number for number in (*hops, *held_out_hops) if not 1 <= number <= MOST_HOPS]:
        raise DataError(f"hops are numbers from 1 to {MOST_HOPS}, but got {strange}")
    if 1 in held_out_hops:
        raise DataError("held_out_hops begin at 2, since longer training paths state every single hop")


def over(
    name: str, walks: Walks, hops: tuple[int, ...] = (), held_out_hops: tuple[int, ...] = (), file: str | None = None
) -> GraphTask:
    """Raises NoPath for a length that is asked for and that the graph has no path of; the usual ones are taken as far as it has.

    At least one of the usual lengths to train on, and one of two hops or more to hold out.
    """
    lengths = tuple(_checked(walks, hops or HOPS, bool(hops)))
    held_out = tuple(_checked(walks, held_out_hops or HELD_OUT_HOPS, bool(held_out_hops)))
    return GraphTask(name, Asked(walks), len(_WORDINGS), lengths, walks=walks, held_out_lengths=held_out, file=file)


def _checked(walks: Walks, lengths: tuple[int, ...], asked: bool) -> Iterator[int]:
    for place, hops in enumerate(lengths):
        try:
            walks.draw(random.Random(f"any/{hops}"), hops)
        except NoPath:
            if asked or place == 0:
                raise
        else:
            yield hops


GRAPH_ICD10 = GraphTask(f"{PREFIX}icd10", Asked(Walks(icd10_graph.graph)), len(_WORDINGS), HOPS)
