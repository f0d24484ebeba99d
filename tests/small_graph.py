"""A town as a graph: people, where they work, where that lies, who knows whom, and inverse relations of two of them."""

from __future__ import annotations

import random

from evaluation.tasks.graph import Graph, Triple

NUM_PEOPLE, NUM_FIRMS, NUM_CITIES = 120, 40, 16


def triples() -> list[Triple]:
    rng = random.Random("town")
    people = [f"Person {number}" for number in range(NUM_PEOPLE)]
    firms = [f"Firm {number}" for number in range(NUM_FIRMS)]
    cities = [f"City {number}" for number in range(NUM_CITIES)]
    lands = [f"Land {number}" for number in range(5)]
    found = []
    for person in people:
        firm = rng.choice(firms)
        found += [Triple(person, "works_at", firm), Triple(firm, "employs", person)]
        found += [Triple(person, "knows", other) for other in rng.sample(people, 2) if other != person]
    for firm in firms:
        city = rng.choice(cities)
        found += [Triple(firm, "lies_in", city), Triple(city, "holds", firm)]
    return [*found, *(Triple(city, "belongs_to", rng.choice(lands)) for city in cities)]


def town() -> Graph:
    return Graph.of(triples())
