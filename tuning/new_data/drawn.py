"""One row a group: rows of one group are much alike, and a test that took each as evidence would find too much."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.task import Example


def one_a_group(rows: Sequence[Example], most: int, seed: str) -> list[Example]:
    """The first row of each group, at most so many, drawn by the seed."""
    first: dict[str, Example] = {}
    for row in rows:
        first.setdefault(row.group, row)
    found = list(first.values())
    return found if len(found) <= most else random.Random(seed).sample(found, most)
