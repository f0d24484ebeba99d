"""What a knowledge graph gives as a curriculum: items by hops in every split, and a sample of them with their gold paths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.whole_file import write_whole
from evaluation.errors import DataError
from evaluation.task import SPLITS, Example, Split
from evaluation.tasks import task_named
from evaluation.tasks.graph import read_graph
from evaluation.tasks.graph_task import PREFIX, GraphTask, of_graph

Hops = tuple[int, ...]


@dataclass(frozen=True)
class Curriculum:
    """`items`: the examples of each split that were found, at most as many as were asked for."""

    task: GraphTask
    items: Mapping[Split, tuple[Example, ...]]

    @classmethod
    def of(cls, task: GraphTask, count: int) -> Curriculum:
        return cls(task, {split: tuple(task.examples(split, count)) for split in SPLITS})

    def by_hops(self, split: Split) -> dict[int, int]:
        return dict(sorted(Counter(self.task.length(example.id) for example in self.items[split]).items()))

    @property
    def num_held_out(self) -> int:
        """Paths that no training item takes."""
        return sum(len(found) for split, found in self.items.items() if split != "train")

    def as_dict(self) -> dict[str, object]:
        graph = self.task.walks.graph()
        return {
            "name": self.task.name,
            "nodes": graph.num_nodes,
            "edges": graph.num_edges,
            "left_out": graph.num_left_out,
            "items": {split: {str(hops): count for hops, count in self.by_hops(split).items()} for split in SPLITS},
            "held_out_paths": self.num_held_out,
            "digest": self.task.digest,
        }

    def rows(self) -> Iterator[dict[str, object]]:
        """One for each item: what a task of one's own reads, and the gold path."""
        for split, found in self.items.items():
            for example in found:
                walk = self.task.found(example.id).walk
                yield {
                    "id": example.id,
                    "split": split,
                    "hops": walk.hops,
                    "question": example.question,
                    "choices": list(example.choices or ()),
                    "answer": example.answer,
                    "rationale": example.rationale,
                    "group": example.group,
                    "path": [list(hop) for hop in zip(walk.nodes, walk.relations, walk.nodes[1:], strict=False)],
                }

    def write(self, file: Path) -> None:
        """As JSONL; whole or not at all."""
        write_whole(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in self.rows()))


def graph_task(source: str, hops: Hops = (), held_out_hops: Hops = ()) -> GraphTask:
    """Of a built-in graph (`icd10`), a graph's file, or a task file that names one. Raises DataError."""
    builtin = source if source.startswith(PREFIX) else f"{PREFIX}{source}"
    if source.endswith(".toml") or "." not in source:
        task = task_named(source if source.endswith(".toml") else builtin)
        if not isinstance(task, GraphTask):
            raise DataError(f"A curriculum is made of a graph, but {source!r} names none. Give a task file with the key `graph`.")
        if hops or held_out_hops:
            raise DataError(f"The hops of {source!r} are its own. Leave --hops and --held-out-hops out, or give a graph's file.")
        return task
    return of_graph(Path(source).stem, read_graph(Path(source)), hops, held_out_hops)
