"""A TOML file that names a knowledge graph, and how many hops are asked for.

name = "drugs"
graph = "drugs.tsv"      # head, relation, tail; or GraphML, or node-link JSON
hops = [1, 2, 3]         # of training items; the usual ones, as far as the graph has such paths, where it does not say
held_out_hops = [2, 3]   # of all other items
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evaluation.tasks.graph import read_graph
from evaluation.tasks.graph_task import GraphTask, check_lengths, over
from evaluation.tasks.task_file import broken_rule, refuse_built_in
from evaluation.tasks.walks import Walks


class GraphSpec(BaseModel):
    """What a task file of a graph says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    graph: str
    hops: tuple[int, ...] = ()
    held_out_hops: tuple[int, ...] = ()

    @field_validator("hops")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        check_lengths(value)
        return value

    @field_validator("held_out_hops")
    @classmethod
    def _composed(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        # One hop is a fact that longer training paths state: nothing about it can be held out.
        check_lengths((), value)
        return value


def graph_file(path: str | Path) -> GraphTask | None:
    """The task of a file that has the key `graph`; None for any other file. Raises `DataError`."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None  # whoever reads it as another kind of task says what is wrong
    if "graph" not in values:
        return None
    try:
        spec = GraphSpec.model_validate(values)
    except ValidationError as error:
        raise broken_rule(path, error, GraphSpec.model_fields) from error
    refuse_built_in(path, spec.name)
    source = Path(path).parent / spec.graph
    graph = cache(lambda: read_graph(source))
    return over(spec.name, Walks(graph), spec.hops, spec.held_out_hops, spec.graph)
