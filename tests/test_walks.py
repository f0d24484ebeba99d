"""Walks: self-avoiding, without shortcuts, with one right end, rivals of its type, and what a false hop leads to."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from small_graph import town

from evaluation.tasks.graph import Graph, Triple
from evaluation.tasks.walks import Found, NoPath, Walk, Walks

GRAPH = town()
WALKS = Walks(lambda: GRAPH)
every_length = pytest.mark.parametrize("hops", [1, 2, 3, 4, 5])


def drawn(hops: int, count: int = 60) -> list[Found]:
    return [WALKS.draw(random.Random(f"{hops}/{number}"), hops) for number in range(count)]


def ends(start: str, relations: tuple[str, ...]) -> set[str]:
    found = {start}
    for relation in relations:
        found = {tail for node in found for tail in GRAPH.reached(node, relation)}
    return found


@every_length
def test_a_walk_follows_edges_and_visits_nothing_twice(hops: int) -> None:
    for found in drawn(hops):
        nodes, relations = found.walk.nodes, found.walk.relations
        assert len(nodes) == len(set(nodes)) == hops + 1
        assert all(
            tail in GRAPH.reached(node, relation) for (node, tail), relation in zip(pairwise(nodes), relations, strict=True)
        )


@every_length
def test_no_single_edge_joins_start_and_end_of_a_longer_walk(hops: int) -> None:
    assert all(GRAPH.are_joined(found.walk.nodes[0], found.walk.nodes[-1]) == (hops == 1) for found in drawn(hops))


@every_length
def test_rivals_are_of_the_ends_type_and_the_relations_do_not_lead_to_them(hops: int) -> None:
    for found in drawn(hops):
        right = ends(found.walk.nodes[0], found.walk.relations)
        assert len(set(found.rivals)) == 3 and found.walk.nodes[-1] in right
        assert not right & set(found.rivals) and not set(found.walk.nodes) & set(found.rivals)
        assert set(found.rivals) <= set(GRAPH.ends[found.walk.relations[-1]])


@every_length
def test_a_false_hop_is_no_edge_and_leads_on_to_another_end(hops: int) -> None:
    flipped = 0
    for found in drawn(hops):
        walk = found.walk
        for place, mishap in enumerate(found.mishaps):
            assert mishap.wrong not in GRAPH.reached(walk.nodes[place], walk.relations[place])
            if mishap.rest is None:
                continue
            flipped += 1
            nodes = (mishap.wrong, *mishap.rest)
            rest = walk.relations[place + 1 :]
            assert all(tail in GRAPH.reached(node, r) for (node, tail), r in zip(pairwise(nodes), rest, strict=True))
            assert nodes[-1] not in ends(walk.nodes[0], walk.relations)
    assert flipped > 0.9 * 60 * hops


def test_a_start_and_its_relations_have_one_end_whoever_draws() -> None:
    known: dict[tuple[str, tuple[str, ...]], str] = {}
    for found in (*drawn(2, 400), *drawn(3, 400)):
        walk = found.walk
        assert known.setdefault((walk.nodes[0], walk.relations), walk.nodes[-1]) == walk.nodes[-1]


def test_an_inverse_walk_belongs_to_the_same_split() -> None:
    for found in drawn(2, 100):
        walk = found.walk
        back = Walk(tuple(reversed(walk.nodes)), ("known by",) * walk.hops)
        assert back.ends == walk.ends and back.split == walk.split


def test_a_training_walk_holds_no_held_out_walk() -> None:
    held_out = set()
    for number in range(3000):
        walk = Walk(tuple(random.Random(number).sample(sorted(GRAPH.edges), 4)), ("r", "r", "r"))
        parts = [Walk(walk.nodes[:3], ("r", "r")), Walk(walk.nodes[1:], ("r", "r"))]
        if walk.split == "train":
            assert all(part.split == "train" for part in parts)
        held_out.add(walk.split)
    assert {"train", "search", "select", "gate", None} <= held_out


def test_a_length_that_no_path_has_is_one_sentence() -> None:
    short = Graph.of([Triple(f"a{number}", "r", f"b{number}") for number in range(9)])
    with pytest.raises(NoPath, match="An item of 2 hops needs a path of that length .* Ask for fewer hops, or add edges"):
        Walks(lambda: short).draw(random.Random(0), 2)
    assert Walks(lambda: short).draw(random.Random(0), 1).walk.hops == 1


def test_a_walk_whose_start_names_its_end_makes_no_item() -> None:
    named = Graph.of([Triple(f"cells of liver {number}", "organ", f"liver {number}") for number in range(9)])
    with pytest.raises(NoPath):
        Walks(lambda: named).draw(random.Random(0), 1)


def test_the_wrong_options_are_called_like_the_right_one() -> None:
    fruits = [Triple(f"dish {n}", "needs", f"{kind} number {n}") for kind in ("apple", "pear", "plum") for n in range(20)]
    graph = Graph.of([Triple(f"{kind} {head}", r, tail) for (head, r, tail), kind in zip(fruits, "abc" * 20, strict=True)])
    for number in range(20):
        found = Walks(lambda: graph).draw(random.Random(number), 1)
        kind = found.walk.nodes[-1].split()[0]
        assert sum(rival.split()[0] == kind for rival in found.rivals) >= 2
