"""Overlap of training rows with held-out rows: the same text, or most of it in runs of 13 words."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from evaluation.errors import Overlap
from evaluation.task import Example

NGRAM = 13
COVERED = 0.6  # the share of a held-out text's words that must lie in shared 13-grams before it counts as a repeat


@dataclass(frozen=True)
class Repeat:
    """One held-out row that the training rows say too, in its whole text or in runs of 13 words."""

    held_out_id: str
    exact: bool


@dataclass(frozen=True)
class Fingerprints:
    """What training rows leave in a release's manifest: 64-bit hashes of the questions and of their 13-grams.

    Template text is not kept: a 13-gram is the template's when half of the pairs of neighbouring words in it (digits
    masked) occur in at least `many(num_rows)` different training texts: 10, or a quarter of the rows where these are
    few (but at least 3), or 0.5 % of them where they are many. So `then Tom buys 4 more apples` is template text in a
    family of word problems, while a copied question or passage is not, however often its row was repeated. A text that
    stands word for word in a tenth of all rows (an instruction, say) is the template's too. A held-out row repeats a
    training row when its context and question are the same after normalisation, or when at least 60 % of the words of
    its question, its context or its answer lie in 13-grams that were kept.
    """

    rows: frozenset[int]
    ngrams: frozenset[int]
    num_rows: int

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Fingerprints:
        rows = {row_hash(example): example for example in examples}
        texts = Counter(" ".join(words(text)) for example in rows.values() for text in fitted_texts(example))
        own = [text.split() for text, uses in texts.items() if uses < max(many(len(rows)), len(rows) / 10)]
        common = template_pairs(own, len(rows))
        return cls(frozenset(rows), frozenset(_hash(ngram) for text in own for ngram in own_ngrams(text, common)), len(rows))

    def joined(self, other: Fingerprints) -> Fingerprints:
        """What repeats a row of either."""
        return Fingerprints(self.rows | other.rows, self.ngrams | other.ngrams, self.num_rows + other.num_rows)

    def repeats(self, held_out: Iterable[Example]) -> list[Repeat]:
        """The held-out rows that repeat a training row, each once."""
        found = []
        for example in held_out:
            if row_hash(example) in self.rows:
                found.append(Repeat(example.id, exact=True))
            elif any(covered(words(text), self._knows) >= COVERED for text in asked_texts(example)):
                found.append(Repeat(example.id, exact=False))
        return found

    def _knows(self, ngram: str) -> bool:
        return _hash(ngram) in self.ngrams


def check_overlap(train: Sequence[Example] | Fingerprints, held_out: Sequence[Example]) -> None:
    """Raises `Overlap`, with the counts and one pair by name, when a held-out row repeats a training row."""
    fingerprints = train if isinstance(train, Fingerprints) else Fingerprints.of(train)
    repeats = fingerprints.repeats(held_out)
    if not repeats:
        return
    first, exact = repeats[0], sum(repeat.exact for repeat in repeats)
    held = next(example for example in held_out if example.id == first.held_out_id)
    source = None if isinstance(train, Fingerprints) else _source(train, held, first.exact)
    pair = f"row {source.id!r}, {_start(source)}," if source else "a training row, known only by its hash,"
    raise Overlap(
        f"No held-out row may repeat a training row, but {len(repeats)} of {len(held_out)} do ({exact} in their whole text, "
        f"{len(repeats) - exact} in runs of {NGRAM} words): {pair} comes again as {first.held_out_id!r}, {_start(held)}. "
        "Remove one of each pair, or give both the same group, so that they stay in one split."
    )


def many(num_rows: int) -> int:
    """In how many different texts a 13-gram must occur to be the template's."""
    return max(3, min(10, num_rows // 4), num_rows // 200)


def words(text: str) -> list[str]:
    """Lower-case words and numbers of any script, without punctuation."""
    return re.findall(r"[^\W_]+", text.casefold())


def row_hash(example: Example) -> int:
    """Of the normalised context and question: what the row asks, whatever its options and its answer."""
    return _hash(" ".join(words(f"{example.context or ''} {example.question}")))


def fitted_texts(example: Example) -> Iterator[str]:
    yield from asked_texts(example)
    if example.rationale:
        yield example.rationale


def asked_texts(example: Example) -> Iterator[str]:
    yield from (text for text in (example.question, example.context, example.answer) if text)


def ngrams(found: Sequence[str], size: int = NGRAM) -> list[str]:
    return [" ".join(found[start : start + size]) for start in range(len(found) - size + 1)]


def covered(said: Sequence[str], is_shared: Callable[[str], bool]) -> float:
    """The share of the words that lie in shared 13-grams."""
    inside = [False] * len(said)
    for start, ngram in enumerate(ngrams(said)):
        if is_shared(ngram):
            inside[start : start + NGRAM] = [True] * NGRAM
    return sum(inside) / len(said) if said else 0.0


def _pairs(found: Sequence[str]) -> list[tuple[str, str]]:
    masked = [re.sub(r"\d+", "#", word) for word in found]
    return list(zip(masked, masked[1:], strict=False))


def template_pairs(texts: Iterable[Sequence[str]], num_rows: int) -> frozenset[tuple[str, str]]:
    """The neighbouring words, digits masked, that stand in as many different texts as a template's do."""
    uses = Counter(pair for text in texts for pair in set(_pairs(text)))
    return frozenset(pair for pair, count in uses.items() if count >= many(num_rows))


def own_ngrams(found: Sequence[str], common: Set[tuple[str, str]]) -> Iterator[str]:
    """The 13-grams in which more than half of the neighbouring pairs are uncommon."""
    uncommon = [pair not in common for pair in _pairs(found)]
    for start, ngram in enumerate(ngrams(found)):
        if 2 * sum(uncommon[start : start + NGRAM - 1]) > NGRAM - 1:
            yield ngram


def _source(train: Sequence[Example], held: Example, exact: bool) -> Example | None:
    """The training row that shares the most with the held-out one."""
    if exact:
        return next((example for example in train if row_hash(example) == row_hash(held)), None)
    wanted = {ngram for text in asked_texts(held) for ngram in ngrams(words(text))}

    def shared(example: Example) -> int:
        return sum(ngram in wanted for text in fitted_texts(example) for ngram in ngrams(words(text)))

    return max(train, key=shared)


def _start(example: Example) -> str:
    text = " ".join(example.question.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
