"""A user's task on data that is larger than memory: rows pass by, and no more than what is asked for is held.

A row's split is that of any task: by the hash of its group. Which rows of a split are drawn goes by a hash of seed and id: the
smallest are taken, in that order. That is a uniform sample, in one pass, which no order of rows and no buffer's size changes; a
smaller one is the beginning of a larger one. What was drawn is kept, so that a sweep passes over the data once a seed, and
not once a trial.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from adapters.backbone import cache_directory
from adapters.whole_file import write_whole
from evaluation.errors import DuplicateId, EmptySplit, OneClassAnswers
from evaluation.task import SPLITS, Example, Split, split_of

AT_LEAST = 1024  # examples of each split that a pass draws, whatever was asked for: the next question needs no pass


@dataclass(frozen=True)
class StreamedTask:
    """`read` passes over all rows, checked one by one; `identity` tells the data and how it is read, without reading it."""

    name: str
    source: str
    identity: str
    read: Callable[[], Iterator[Example]]
    told: dict[str, JsonValue]  # the task file
    files: tuple[Path, ...] = ()  # none of a dataset, which has its revision
    guard: Literal["likelihood"] | None = None  # see evaluation.tasks.user_data
    held_out: bool = False

    @cached_property
    def data_sha256(self) -> str | None:
        """Over all files, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest() if self.files else None

    @property
    def has_chains(self) -> bool:
        """Whether every row that a first pass draws has a rationale."""
        return all(row.steps for split in SPLITS[1:] for row in self.examples(split, AT_LEAST))

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        kept = cache_directory() / "drawn" / self._key(seed)
        found = _kept(kept / f"{split}.json", count)
        if found is None:
            drawn = self._drawn(max(count, AT_LEAST), seed)
            for one, rows in drawn.items():
                told = {"whole": len(rows) < max(count, AT_LEAST), "rows": [asdict(row) for row in rows]}
                write_whole(kept / f"{one}.json", json.dumps(told))
            found = drawn[split]
        self._check(split, found)
        return found[:count]

    def _drawn(self, count: int, seed: int) -> dict[Split, list[Example]]:
        """One pass. A heap a split holds what is drawn so far, the first to go at its top."""
        heaps: dict[Split, list[tuple[int, int, Example]]] = {split: [] for split in SPLITS}
        for place, example in enumerate(self.read()):
            split = split_of(example.group, self.held_out)
            entry = (-_priority(f"{self.name}/{split}/{seed}/{example.id}"), -place, example)
            heap = heaps[split]
            if len(heap) < count:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)
        return {split: [example for _, _, example in sorted(heap, reverse=True)] for split, heap in heaps.items()}

    def _check(self, split: Split, rows: Sequence[Example]) -> None:
        """Of what was drawn: the whole would have to be held."""
        if self.held_out and split == "train":
            return
        if not rows:
            raise EmptySplit(
                f"Each of {', '.join(SPLITS)} must get at least one group, but {split} got none in {self.source!r}. Add rows "
                "with other questions, or name a finer group column."
            )
        if split == "train" and len({row.answer.casefold() for row in rows}) == 1:
            raise OneClassAnswers(
                f"A task needs at least two different answers, but all {len(rows)} rows that were drawn of {self.source!r} have "
                f"{rows[0].answer!r}. Add rows with another answer, or correct the answer column."
            )
        if len({row.id for row in rows}) < len(rows):
            twice = next(row.id for index, row in enumerate(rows) if row.id in {other.id for other in rows[:index]})
            raise DuplicateId(
                f"Ids must differ, but two rows that were drawn of {self.source!r} are {twice!r}. Rename one, or name no id "
                "column."
            )

    def _key(self, seed: int) -> str:
        return hashlib.sha256(f"{self.identity}/{seed}".encode()).hexdigest()[:32]


def _priority(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _kept(file: Path, count: int) -> list[Example] | None:
    """What an earlier pass drew, where it is as much as is asked for, or all there is."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rows = [Example(**{**row, "choices": None if row["choices"] is None else tuple(row["choices"])}) for row in told["rows"]]
        return rows if told["whole"] or len(rows) >= count else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
