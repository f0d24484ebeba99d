"""`graftline curriculum`: what a knowledge graph gives, without a model."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evaluation.task import SPLITS
from tuning.curriculum import Curriculum, Hops, graph_task

SHOWN = 2  # items that are printed


def curriculum(source: str, hops: Hops, held_out_hops: Hops, items: int, sample: Path | None, as_json: bool) -> None:
    found = Curriculum.of(graph_task(source, hops, held_out_hops), items)
    if sample:
        found.write(sample)
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    console, graph = Console(markup=False), found.task.walks.graph()
    console.print(f"{found.task.name}: {graph.num_nodes} nodes, {sum(graph.num_edges.values())} edges", highlight=False)
    if graph.num_left_out:
        console.print(f"{graph.num_left_out} nodes left out: their names are shared, empty or too long", highlight=False)
    relations = Table("relation", "edges", "ends")
    for relation, count in graph.num_edges.items():
        relations.add_row(relation, str(count), str(len(graph.ends[relation])))
    console.print(relations)
    console.print(_items(found))
    console.print(f"{found.num_held_out} held-out paths, at most {items} items a split were drawn", highlight=False)
    for example in found.items["train"][:SHOWN]:
        asked = f"{example.question}\nOptions: {'; '.join(example.choices or ())}"
        console.print(f"\n{asked}\n{example.chain}", highlight=False, markup=False)
    if sample:
        console.print(f"\n{sum(map(len, found.items.values()))} items written to {sample}", highlight=False)


def _items(found: Curriculum) -> Table:
    counts = {split: found.by_hops(split) for split in SPLITS}
    lengths = sorted({hops for by_hops in counts.values() for hops in by_hops})
    made = Table("split", *(f"{hops} hop{'s' * (hops > 1)}" for hops in lengths), "items")
    for split, by_hops in counts.items():
        made.add_row(split, *(str(by_hops.get(hops, 0)) for hops in lengths), str(sum(by_hops.values())))
    return made
