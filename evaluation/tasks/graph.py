"""A knowledge graph: named things, and relations that lead from one to another. Read from triples, GraphML or node-link JSON."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import ParseError

from evaluation.errors import DataError, UnreadableFile, WrongRow
from evaluation.overlap import words

if TYPE_CHECKING:
    import networkx

HEADER = ("head", "relation", "tail")
MAX_WORDS = 12  # of a name: longer ones fill the prompt, and are a passage that train and held-out items would share
_NAMED_BY, _RELATED_BY = ("name", "label", "title"), ("relation", "label", "type", "key")


class Edge(NamedTuple):
    relation: str
    tail: str


class Triple(NamedTuple):
    head: str
    relation: str
    tail: str


@dataclass(frozen=True)
class Graph:
    """`edges[head]`, in a fixed order and each once; no edge leads back to its own head. A name is one thing."""

    edges: Mapping[str, tuple[Edge, ...]]
    num_left_out: int = 0  # names that several nodes share, or of more than MAX_WORDS words

    @classmethod
    def of(cls, triples: Iterable[Triple], names: Mapping[str, str] | None = None) -> Graph:
        """`names` says what the ends of the triples are called, where they are ids; a shared name would not say which."""
        found = list(triples)
        ids = dict.fromkeys(end for triple in found for end in (triple.head, triple.tail))
        called = {node: " ".join((names[node] if names else node).split()) for node in ids}
        uses = Counter(name.casefold() for name in called.values())
        usable = {node for node, name in called.items() if uses[name.casefold()] == 1 and 0 < len(words(name)) <= MAX_WORDS}
        edges: dict[str, dict[Edge, None]] = defaultdict(dict)
        for head, relation, tail in found:
            if head in usable and tail in usable and head != tail:
                edges[called[head]][Edge(" ".join(relation.replace("_", " ").split()), called[tail])] = None
        return cls({head: tuple(sorted(tails)) for head, tails in sorted(edges.items())}, len(ids) - len(usable))

    def reached(self, head: str, relation: str) -> tuple[str, ...]:
        return self._reached.get((head, relation), ())

    def are_joined(self, one: str, two: str) -> bool:
        """Whether an edge leads from either to the other."""
        return two in self._tails.get(one, ()) or one in self._tails.get(two, ())

    @cached_property
    def _reached(self) -> dict[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for head, edges in self.edges.items():
            for relation, tail in edges:
                found[head, relation] = (*found.get((head, relation), ()), tail)
        return found

    @cached_property
    def _tails(self) -> dict[str, frozenset[str]]:
        return {head: frozenset(edge.tail for edge in edges) for head, edges in self.edges.items()}

    @cached_property
    def ends(self) -> dict[str, tuple[str, ...]]:
        """By relation: all that it leads to anywhere, sorted. It is the relation's type."""
        found: dict[str, set[str]] = defaultdict(set)
        for edges in self.edges.values():
            for relation, tail in edges:
                found[relation].add(tail)
        return {relation: tuple(sorted(tails)) for relation, tails in sorted(found.items())}

    @cached_property
    def num_edges(self) -> dict[str, int]:
        """By relation."""
        return dict(sorted(Counter(edge.relation for edges in self.edges.values() for edge in edges).items()))

    @cached_property
    def num_nodes(self) -> int:
        return len(self.edges.keys() | {tail for tails in self._tails.values() for tail in tails})


def read_graph(path: Path) -> Graph:
    """A TSV or CSV of head, relation, tail (with or without that header), a GraphML file, or node-link JSON. Raises DataError."""
    readers = {".tsv": _read_triples, ".csv": _read_triples, ".graphml": _read_graphml, ".json": _read_node_link}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UnreadableFile(
            f"A graph comes as {', '.join(readers)}, but {str(path)!r} ends in {path.suffix!r}. Convert it, or correct its name."
        )
    if not path.is_file():
        raise UnreadableFile(f"The graph's file must exist, but {str(path)!r} does not. Correct the path.")
    try:
        graph = reader(path)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, csv.Error, ParseError) as error:
        raise UnreadableFile(
            f"A graph must be readable as {path.suffix}, but {str(path)!r} is not: {error or type(error).__name__}. Write it "
            "again, in UTF-8."
        ) from error
    if not graph.edges:
        raise DataError(
            f"A graph needs edges between two different things that have a name of their own, of at most {MAX_WORDS} words, but "
            f"{str(path)!r} has none. Correct its rows."
        )
    return graph


def of_networkx(graph: networkx.Graph) -> Graph:
    """What NetworkX holds. A node is called by its name, label or title, an edge by its relation, label, type or key.

    An edge of an undirected graph leads both ways.
    """
    names = {node: str(_first(values, _NAMED_BY) or node) for node, values in graph.nodes(data=True)}
    triples = []
    for head, tail, *key, values in graph.edges(data=True, **({"keys": True} if graph.is_multigraph() else {})):
        given = {"key": key[0]} if key and isinstance(key[0], str) else {}
        relation = _first({**given, **values}, _RELATED_BY)
        if not relation:
            has = f"only {', '.join(map(repr, sorted(values)))}" if values else "no attributes"
            raise WrongRow(
                f"Every edge of a graph says its relation, but that from {head!r} to {tail!r} has {has}. Add the attribute "
                "`relation`."
            )
        triples.append(Triple(str(head), str(relation), str(tail)))
        if not graph.is_directed():
            triples.append(Triple(str(tail), str(relation), str(head)))
    return Graph.of(triples, {str(node): name for node, name in names.items()})


def _first(values: Mapping[str, Any], keys: Iterable[str]) -> object:
    return next((values[key] for key in keys if values.get(key)), None)


def _read_triples(path: Path) -> Graph:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # A tab is no part of a name, so that what looks like a quote is one only in a CSV.
        tabs = path.suffix.lower() == ".tsv"
        rows = csv.reader(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        places, triples = (0, 1, 2), []
        for row in rows:
            cells = [cell.strip() for cell in row]
            if rows.line_num == 1 and sorted(cell.lower() for cell in cells) == sorted(HEADER):
                lowered = [cell.lower() for cell in cells]
                places = (lowered.index("head"), lowered.index("relation"), lowered.index("tail"))
                continue
            if not any(cells):
                continue
            if len(cells) != 3 or not all(cells):
                raise WrongRow(
                    f"Every row of a triple file is {', '.join(HEADER)}, but line {rows.line_num} of {str(path)!r} has "
                    f"{row!r}. Correct or remove it."
                )
            triples.append(Triple(*(cells[place] for place in places)))
    return Graph.of(triples)


def _read_graphml(path: Path) -> Graph:
    import networkx

    return of_networkx(networkx.read_graphml(path))


def _read_node_link(path: Path) -> Graph:
    import networkx

    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "nodes" not in values or not {"edges", "links"} & values.keys():
        raise UnreadableFile(
            f"Node-link JSON is one object with nodes and edges (or links), but {str(path)!r} is not. Write it with "
            "networkx.node_link_data."
        )
    try:
        return of_networkx(networkx.node_link_graph(values, edges="edges" if "edges" in values else "links"))
    except networkx.NetworkXError as error:
        raise UnreadableFile(
            f"{str(path)!r} is no graph for NetworkX: {error}. Write it with networkx.node_link_data."
        ) from error
