"""Coding into a classification: which branch does a thing belong to, among other branches of the same tree."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice, zip_longest
from typing import Literal, TypeVar

from evaluation.overlap import ngrams, words
from evaluation.task import SPLITS, Example, Split, normalise, split_of

Level = Literal["widest", "narrowest"]
T = TypeVar("T")

# What a 135M backbone reads at ease.
_MAX_TEXT, _MAX_TITLE = 160, 90
_RUN, _PHRASE_GROUPS = 7, 10
_NARROW_RIVALS = (3, 4, 5)
_SMALL_WORDS = frozenset("and or of the in to by for with due other not elsewhere classified unspecified nec certain".split())


@dataclass(frozen=True)
class Leaf:
    """One code: its description, the titles above it from the widest to the narrowest, and the narrowest's code."""

    code: str
    text: str
    path: tuple[str, str, str]
    group: str


class Table:
    """The codes that can be asked about, and the titles that options are drawn from.

    A description that occurs in two groups, or that is its group's title, is left out: it could cross splits, or give
    the answer away.
    """

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        rows = [leaf for leaf in leaves if len(leaf.text) <= _MAX_TEXT and len(leaf.path[2]) <= _MAX_TITLE]
        groups: dict[str, set[str]] = defaultdict(set)
        for leaf in rows:
            groups[normalise(leaf.text)].add(leaf.group)
        kept: dict[str, Leaf] = {}
        for leaf in rows:
            text = normalise(leaf.text)
            if len(groups[text]) == 1 and text != normalise(leaf.path[2]):
                kept.setdefault(text, leaf)
        self.leaves = tuple(kept.values())

    @cached_property
    def by_split(self) -> dict[Split, tuple[Leaf, ...]]:
        """Held-out splits first: a description that shares a run of words with one of another split is left out.

        Runs that many groups share (`initial encounter for closed fracture`) are the classification's own phrases.
        """
        found: dict[Split, list[Leaf]] = {split: [] for split in SPLITS}
        splits = {group: split_of(group) for group in dict.fromkeys(leaf.group for leaf in self.leaves)}
        runs = {leaf.code: ngrams(words(leaf.text), _RUN) for leaf in self.leaves}
        uses = Counter(run for run, _ in {(run, leaf.group) for leaf in self.leaves for run in runs[leaf.code]})
        owner: dict[str, Split] = {}
        for leaf in sorted(self.leaves, key=lambda leaf: -SPLITS.index(splits[leaf.group])):
            split = splits[leaf.group]
            if all(uses[run] > _PHRASE_GROUPS or owner.setdefault(run, split) == split for run in runs[leaf.code]):
                found[split].append(leaf)
        return {split: tuple(leaves) for split, leaves in found.items()}

    @cached_property
    def widest_titles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(leaf.path[0] for leaf in self.leaves))

    @cached_property
    def narrow_titles(self) -> dict[str, tuple[str, ...]]:
        """The narrowest titles below each widest one."""
        titles: dict[str, dict[str, None]] = defaultdict(dict)
        for leaf in self.leaves:
            titles[leaf.path[0]].setdefault(leaf.path[2])
        return {widest: tuple(found) for widest, found in titles.items()}


@dataclass(frozen=True)
class ClassificationTask:
    """Asks for one level of the path. An example depends on its code alone; the seed chooses which are drawn.

    The options are scored and not listed: to know a title is the task, to pick one from a shuffled list another.

    The rationale walks the path towards the answer: from the widest title down, or from the narrowest up. Drawing takes
    turns over the widest titles and, within each, over groups: a classification is lopsided, the questions are not.
    """

    name: str
    level: Level
    table: Callable[[], Table]  # cached by its owner: reading is slow, and happens at the first call only
    question: str
    level_names: tuple[str, str, str]

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        rng = random.Random(f"{self.name}/{split}/{seed}")
        drawn = (self._example(leaf) for leaf in _in_turns(self.table().by_split[split], rng))
        return list(islice((example for example in drawn if example is not None), count))

    def _example(self, leaf: Leaf) -> Example | None:
        """None when fair options cannot be found for this code."""
        rng = random.Random(f"{self.name}/{leaf.code}")
        if self.level == "widest":
            answer = leaf.path[0]
            rivals = [title for title in self.table().widest_titles if title != answer]
        else:
            answer = leaf.path[2]
            rivals = self._nearest_titles(leaf, rng)
        choices = [answer, *rivals]
        if len(rivals) < _NARROW_RIVALS[0]:
            return None
        rng.shuffle(choices)
        walk = list(zip(self.level_names, leaf.path, strict=True))
        distinct = {title: f"{level}: {title}" for level, title in (walk if self.level == "narrowest" else reversed(walk))}
        return Example(
            id=f"{self.name}/{leaf.code}",
            question=self.question.format(text=leaf.text),
            answer=answer,
            choices=tuple(choices),
            rationale="\n".join(distinct.values()),
            group=leaf.group,
            listed=False,
        )

    def _nearest_titles(self, leaf: Leaf, rng: random.Random) -> list[str]:
        """Titles that share the most words with the description, so that matching words is not enough."""
        shown = content_words(leaf.text)
        own = normalise(leaf.path[2])
        titles = [title for title in self.table().narrow_titles[leaf.path[0]] if normalise(title) != own]
        rng.shuffle(titles)
        titles.sort(key=lambda title: -len(content_words(title) & shown))
        rivals = titles[: rng.choice(_NARROW_RIVALS)]
        return [] if _gives_itself_away(leaf, rivals) else rivals


@dataclass(frozen=True)
class Mixture:
    """Several tasks over the same splits, in turns: half of the examples each for two."""

    name: str
    parts: tuple[ClassificationTask, ...]

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        drawn = [part.examples(split, count, seed) for part in self.parts]
        turns = chain.from_iterable(zip_longest(*drawn))
        return list(islice((example for example in turns if example is not None), count))


@lru_cache(1 << 16)  # a title is compared with every description of its chapter
def content_words(text: str) -> frozenset[str]:
    """The words that carry meaning, without their plural s."""
    return frozenset(word.rstrip("s") for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in _SMALL_WORDS)


def _gives_itself_away(leaf: Leaf, rivals: list[str]) -> bool:
    """True when the description holds the whole right title and shares fewer words with every rival."""
    shown, own = content_words(leaf.text), content_words(leaf.path[2])
    return own <= shown and all(len(content_words(rival) & shown) < len(own) for rival in rivals)


def _in_turns(leaves: Iterable[Leaf], rng: random.Random) -> Iterator[Leaf]:
    tree: dict[str, dict[str, list[Leaf]]] = defaultdict(lambda: defaultdict(list))
    for leaf in leaves:
        tree[leaf.path[0]][leaf.group].append(leaf)
    branches = []
    for groups in tree.values():
        for members in groups.values():
            rng.shuffle(members)
        shuffled = list(groups.values())
        rng.shuffle(shuffled)
        branches.append(_round_robin(shuffled))
    rng.shuffle(branches)
    return _round_robin(branches)


def _round_robin(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    waiting = [iter(queue) for queue in queues]
    while waiting:
        still = []
        for queue in waiting:
            for item in islice(queue, 1):
                yield item
                still.append(queue)
        waiting = still
