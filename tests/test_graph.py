"""Knowledge graphs: read from triples, GraphML and node-link JSON, refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import networkx
import pytest

from evaluation.errors import DataError, UnreadableFile, WrongRow
from evaluation.tasks.graph import Edge, Graph, Triple, of_networkx, read_graph

DRUGS = [("aspirin", "treats", "pain"), ("aspirin", "thins", "blood"), ("pain", "is_a", "symptom")]
READ = {
    "aspirin": (Edge("thins", "blood"), Edge("treats", "pain")),
    "pain": (Edge("is a", "symptom"),),
}


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_triples_are_read_with_and_without_a_header_and_in_its_order(tmp_path: Path) -> None:
    plain = "".join("\t".join(row) + "\n" for row in DRUGS)
    turned = "tail,head,relation\n" + "".join(f"{tail},{head},{relation}\n" for head, relation, tail in DRUGS)
    assert read_graph(written(tmp_path, "a.tsv", plain)).edges == READ
    assert read_graph(written(tmp_path, "b.csv", turned)).edges == READ


def test_graphml_and_node_link_json_hold_the_same_graph(tmp_path: Path) -> None:
    graph = networkx.MultiDiGraph()
    for number, (head, relation, tail) in enumerate(DRUGS):
        graph.add_edge(head, tail, key=number, relation=relation)
    networkx.write_graphml(graph, tmp_path / "a.graphml")
    (tmp_path / "b.json").write_text(json.dumps(networkx.node_link_data(graph, edges="links")))
    assert of_networkx(graph).edges == READ
    assert read_graph(tmp_path / "a.graphml").edges == read_graph(tmp_path / "b.json").edges == READ


def test_a_node_is_called_by_its_name_and_an_undirected_edge_leads_both_ways() -> None:
    graph = networkx.Graph()
    graph.add_node(1, name="Ada")
    graph.add_node(2, label="Bill")
    graph.add_edge(1, 2, label="sister of")
    assert of_networkx(graph).edges == {"Ada": (Edge("sister of", "Bill"),), "Bill": (Edge("sister of", "Ada"),)}


def test_a_name_that_two_nodes_share_or_that_is_a_passage_is_left_out() -> None:
    names = {"a": "Cell", "b": "cell", "c": "Root", "d": " ".join(["word"] * 13)}
    rows = [Triple("c", "has", "a"), Triple("c", "has", "b"), Triple("c", "has", "d"), Triple("c", "needs", "e")]
    graph = Graph.of(rows, {**names, "e": "Water"})
    assert graph.edges == {"Root": (Edge("needs", "Water"),)} and graph.num_left_out == 3


def test_loops_and_repeated_edges_count_once_or_not_at_all() -> None:
    assert Graph.of([Triple("a", "r", "b"), Triple("a", "r", "b"), Triple("a", "r", "a")]).edges == {"a": (Edge("r", "b"),)}


def test_joined_is_joined_either_way() -> None:
    graph = Graph.of([Triple("a", "r", "b"), Triple("b", "r", "c")])
    assert graph.are_joined("a", "b") and graph.are_joined("b", "a") and not graph.are_joined("a", "c")


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("a.tsv", "a\tr\n", WrongRow, r"head, relation, tail, but line 1 of .* has \['a', 'r'\]. Correct"),
        ("a.csv", "a,r,b\na,,b\n", WrongRow, "but line 2"),
        ("a.xlsx", "", UnreadableFile, "comes as .tsv, .csv, .graphml, .json, but"),
        ("a.json", "[1]", UnreadableFile, "networkx.node_link_data"),
        ("a.json", "{", UnreadableFile, "must be readable as .json"),
        ("a.graphml", "<a", UnreadableFile, "must be readable as .graphml"),
        ("a.tsv", "a\tr\ta\n", DataError, "needs edges between two different things"),
        ("a.json", '{"nodes": [{"id": 1}, {"id": 2}], "links": [{"source": 1, "target": 2}]}', WrongRow, "Add the attribute"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_with_the_way_out(
    tmp_path: Path, name: str, text: str, error: type[DataError], said: str
) -> None:
    with pytest.raises(error, match=said):
        read_graph(written(tmp_path, name, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="must exist"):
        read_graph(tmp_path / "none.tsv")
