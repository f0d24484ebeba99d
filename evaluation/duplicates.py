"""Rows that say what another row says: to the letter after normalisation, or in runs of 13 words (see evaluation.overlap)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from evaluation.overlap import (
    COVERED,
    asked_texts,
    covered,
    fitted_texts,
    ngrams,
    own_ngrams,
    row_hash,
    template_pairs,
    words,
)
from evaluation.task import Example


@dataclass(frozen=True)
class Duplicate:
    """Two rows that ask the same. `exact`: in their whole text; `agrees`: they have the same answer."""

    row: Example
    of: Example
    exact: bool
    agrees: bool


class SaidBefore:
    """Rows by what they ask: which of them a further row repeats."""

    def __init__(self, rows: Iterable[Example] = (), common: Set[tuple[str, str]] = frozenset()) -> None:
        self._common = common
        self._exact: dict[int, Example] = {}
        self._by_ngram: dict[str, list[Example]] = defaultdict(list)
        for row in rows:
            self.add(row)

    def add(self, row: Example) -> None:
        self._exact.setdefault(row_hash(row), row)
        for ngram in self._ngrams(row):
            self._by_ngram[ngram].append(row)

    def duplicate(self, row: Example) -> Duplicate | None:
        """The row that asks the same: question and context each equal, or covered by what the two share.

        Near is only what has the same answer too: of two long wordings that differ in one number, each is a row of its own.
        """
        if (found := self._exact.get(row_hash(row))) is not None:
            return Duplicate(row, found, True, _answer(found) == _answer(row))
        seen: set[int] = set()
        for ngram in self._ngrams(row):
            for other in self._by_ngram.get(ngram, ()):
                if id(other) not in seen and _answer(other) == _answer(row) and self._near(row, other):
                    return Duplicate(row, other, False, True)
                seen.add(id(other))
        return None

    def _near(self, row: Example, other: Example) -> bool:
        return all(
            self._same(words(one or ""), words(two or ""))
            for one, two in ((row.question, other.question), (row.context, other.context))
        )

    def _same(self, one: Sequence[str], two: Sequence[str]) -> bool:
        if one == two:
            return True
        return covered(one, set(own_ngrams(two, self._common)).__contains__) >= COVERED

    def _ngrams(self, row: Example) -> Iterator[str]:
        for text in (row.question, row.context):
            yield from own_ngrams(words(text or ""), self._common)


def common_pairs(rows: Sequence[Example]) -> frozenset[tuple[str, str]]:
    """What of the rows' wordings is their template's."""
    texts = {tuple(words(text)) for row in rows for text in fitted_texts(row)}
    return template_pairs(texts, len({row_hash(row) for row in rows}))


def blocked(rows: Sequence[Example], held_out: Iterable[Example], common: Set[tuple[str, str]]) -> dict[str, Example]:
    """By the id of a row: the held-out row that it repeats, were it trained on. By the rule of evaluation.overlap.

    A row of the same group, which is another question on the same passage, say, is held out with it, and repeats nothing.
    """
    by_hash: dict[int, list[Example]] = defaultdict(list)
    by_ngram: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        by_hash[row_hash(row)].append(row)
        for ngram in {ngram for text in fitted_texts(row) for ngram in own_ngrams(words(text), common)}:
            by_ngram[ngram].append(row)
    found: dict[str, Example] = {}
    for held in held_out:
        hit = list(by_hash.get(row_hash(held), ()))
        for text in asked_texts(held):
            said = words(text)
            shared = {ngram for ngram in ngrams(said) if ngram in by_ngram}
            if shared and covered(said, shared.__contains__) >= COVERED:
                hit.extend(row for ngram in shared for row in by_ngram[ngram])
        for row in hit:
            if row.group != held.group:
                found.setdefault(row.id, held)
    return found


def _answer(row: Example) -> str:
    return " ".join(words(row.answer)) or row.answer
