"""Training rows whose traces were tampered with: the control arms of a trace-reliance study.

After Stechly et al. 2025 (arXiv 2505.13775): answers stay, traces change. Training rows alone are given here; what is measured is
never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.task import Example, comparable

BUCKET = 64  # rows of like length, in which traces are swapped
_FORBIDDEN = 1e6
_UNITS = (" .", " ...", ".", " -", "-", " _", "_")


def swapped(backbone: Backbone, examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """A derangement inside buckets of like length: the traces are the same as a whole, and none stands by its own question.

    No row gets a trace that states its answer, or that belongs to a row of the same answer: something would be left of the link
    between problem and trace. A bucket in which that cannot be kept is widened; DataError where it cannot be kept at all.
    """
    lengths = [len(backbone.encode(example.rationale or "")) for example in examples]
    by_length = sorted(range(len(examples)), key=lambda index: (lengths[index], index))
    rows, rng = [_Comparable.of(example) for example in examples], np.random.default_rng([seed, len(examples)])
    size = min(BUCKET, len(examples))
    while True:
        givers = _within_buckets(rows, by_length, size, rng)
        if givers is not None:
            return [replace(examples[i], rationale=examples[givers[i]].rationale) for i in range(len(examples))]
        if size >= len(examples):
            raise DataError(
                f"A swapped trace must not give its row's answer away, but among {len(examples)} rows no swap keeps every answer "
                "out. Take more rows (method.num_examples), or data with more different answers."
            )
        size = min(2 * size, len(examples))


def filled(backbone: Backbone, examples: Sequence[Example]) -> list[Example]:
    """Every step replaced by dots; a row keeps its number of steps and of tokens."""
    filler = cache(lambda count: _filler(backbone.encode, count))

    def row(example: Example) -> Example:
        steps = [filler(len(backbone.encode(f"{step}\n"))) for step in example.steps]
        made = replace(example, rationale="\n".join(steps))
        before, after = len(backbone.encode(example.chain)), len(backbone.encode(made.chain))
        if before != after:
            raise DataError(
                f"Filler has as many tokens as the trace that it stands for, but row {example.id!r} came to {after}, not "
                f"{before}: this tokenizer merges across lines. Leave the filler arm out."
            )
        return made

    return [row(example) for example in examples]


@dataclass(frozen=True)
class _Comparable:
    """A row's answer and trace as words between spaces, whatever their case and punctuation."""

    answer: str
    trace: str

    @classmethod
    def of(cls, example: Example) -> _Comparable:
        return cls(f" {comparable(example.answer)} ", f" {' '.join(map(comparable, example.steps))} ")

    def may_get_trace_of(self, giver: _Comparable) -> bool:
        return self.answer != giver.answer and self.answer not in giver.trace


def _within_buckets(
    rows: Sequence[_Comparable], by_length: Sequence[int], size: int, rng: np.random.Generator
) -> dict[int, int] | None:
    """Whose trace each row gets; None when some bucket has no allowed swap. Of all allowed ones, a random one."""
    givers: dict[int, int] = {}
    # The last bucket takes what is left over, so that none is too small to be swapped in.
    starts = range(0, max(1, len(by_length) // size) * size, size)
    for start in starts:
        bucket = by_length[start : start + size if start != starts[-1] else None]
        cost = rng.random((len(bucket), len(bucket)))
        for at, taker in enumerate(bucket):
            for by, giver in enumerate(bucket):
                if not rows[taker].may_get_trace_of(rows[giver]):
                    cost[at, by] = _FORBIDDEN
        takers, chosen = linear_sum_assignment(cost)
        if cost[takers, chosen].max() >= _FORBIDDEN:
            return None
        givers.update((bucket[at], bucket[by]) for at, by in zip(takers, chosen, strict=True))
    return givers


def _filler(encode: Callable[[str], Sequence[int]], count: int) -> str:
    """A line that, with its line end, has that many tokens: grown by whatever unit adds exactly one."""
    line = ""
    while (reached := len(encode(f"{line}\n"))) < count or not line:
        longer = next((line + unit for unit in _UNITS if len(encode(f"{line}{unit}\n")) == reached + 1), None)
        if longer is None:
            raise DataError(
                f"Filler grows by one token at a time, but after {line!r} none of {list(_UNITS)} does so in this tokenizer. "
                "Leave the filler arm out."
            )
        line = longer
    return line
