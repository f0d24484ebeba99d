"""Texts of the rows that are trained on, and the ones that a question finds among them (BM25, by bm25s)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from evaluation.task import Example, answer_line

Retrieval = Literal["best", "random"]


@dataclass(frozen=True)
class Texts:
    """One text a training row: what it asks, its rationale and its answer. Nothing of a held-out row is ever among them."""

    texts: tuple[str, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Texts:
        said = (" ".join((example.question, *example.steps, answer_line(example.answer))) for example in examples)
        return cls(tuple(dict.fromkeys(" ".join(text.split()) for text in said)))

    def found(self, examples: Sequence[Example], count: int, retrieval: Retrieval) -> list[tuple[str, ...]]:
        """For each example `count` texts: those that its question finds, or, as the control, any."""
        count = min(count, len(self.texts))
        if retrieval == "random":
            return [tuple(random.Random(f"texts/{example.id}").sample(self.texts, count)) for example in examples]
        import bm25s

        index = bm25s.BM25()
        index.index(_words(list(self.texts)), show_progress=False)
        asked = _words([" ".join(example.question.split()) for example in examples])
        # Several threads would share the few cores with the fit.
        found, _ = index.retrieve(asked, k=count, show_progress=False, n_threads=1)
        return [tuple(self.texts[int(place)] for place in places) for places in found]


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    # Its own pattern drops what has one character: C, 7.
    tokens = bm25s.tokenize(texts, stopwords=None, token_pattern=r"(?u)\b\w+\b", return_ids=False, show_progress=False)
    return cast("list[list[str]]", tokens)
