"""Things of one type, those that are called most like another first: an option that is plainly wrong tells nothing."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evaluation.tasks.classification import content_words

_FREQUENT = 150  # a word that more names of a type share tells little, and is passed over
_A_WORD = 8  # names that share one word, at most; which, is drawn
_OTHERS = 12  # drawn at random after those that share a word


@dataclass(frozen=True)
class Lookalikes:
    """`types[relation]`: the names that it leads to."""

    types: Mapping[str, Sequence[str]]

    def of(self, rng: random.Random, name: str, relation: str) -> Iterator[str]:
        """Names of the relation's type, by the rare words that they share with that name; then some at random. May repeat."""
        by_word, typed = self._by_word[relation], self.types[relation]
        near: dict[str, float] = defaultdict(float)
        for word in sorted(content_words(name)):
            sharing = by_word.get(word, ())
            for one in sharing if len(sharing) <= _A_WORD else rng.sample(sharing, _A_WORD):
                near[one] += 1 / len(sharing)
        yield from sorted(near, key=lambda one: -near[one])
        for _ in range(min(_OTHERS, len(typed))):
            yield rng.choice(typed)
        if len(typed) <= 4 * _OTHERS:  # so few that none may be missed
            yield from rng.sample(typed, len(typed))

    @cached_property
    def _by_word(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for relation, names in self.types.items():
            words: dict[str, list[str]] = defaultdict(list)
            for name in names:
                for word in sorted(content_words(name)):
                    words[word].append(name)
            found[relation] = {word: sharing for word, sharing in words.items() if len(sharing) <= _FREQUENT}
        return found
