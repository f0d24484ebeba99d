"""Kinship walks: follow relatives through shuffled facts, one relative a step."""

from __future__ import annotations

import random

from evaluation.tasks.generated import GeneratedTask, Problem, different

_NAMES = (
    "Ada",
    "Bill",
    "Cora",
    "Doug",
    "Ella",
    "Fred",
    "Gail",
    "Hugo",
    "Iris",
    "Jim",
    "Kate",
    "Luke",
    "Mary",
    "Neil",
    "Olga",
    "Pete",
    "Ruth",
    "Seth",
)
_RELATIVES = ("mother", "father", "sister", "brother", "aunt", "uncle", "cousin", "teacher", "boss", "neighbour")
_FACTS = (
    "The {relative} of {one} is {two}.",
    "{two} is the {relative} of {one}.",
    "{one} has a {relative} named {two}.",
    "As {relative}, {one} has {two}.",
)
_ASKS = ("Who is {path} {one}?", "Name {path} {one}.", "Find {path} {one}.", "Tell me {path} {one}.")


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    people = rng.sample(_NAMES, num_steps + 4)
    path, others = people[: num_steps + 1], people[num_steps + 1 :]
    relatives = [rng.choice(_RELATIVES) for _ in range(num_steps)]
    facts = list(zip(path, relatives, path[1:], strict=False))
    # Distractors leave a person of the path by another relation, so that the relation must be read.
    for other in others[:2]:
        place = rng.randrange(num_steps)
        facts.append((path[place], rng.choice([r for r in _RELATIVES if r != relatives[place]]), other))
    shown = rng.sample(facts, len(facts))
    lines = [_FACTS[wording].format(one=one, relative=relative, two=two) for one, relative, two in shown]
    steps = [f"The {relative} of {one} is {two}" for one, relative, two in facts]
    corrupted = [
        f"The {r} of {one} is {rng.choice([p for p in people if p not in (one, two)])}" for one, r, two in facts[:num_steps]
    ]
    walk = " ".join(f"the {relative} of" for relative in reversed(relatives))
    question = " ".join((*lines, _ASKS[wording].format(path=walk, one=path[0])))
    rivals = different(rng, people, path[-1])
    return Problem(question, tuple(steps[:num_steps]), tuple(corrupted), path[-1], rivals, tuple(steps))


KINSHIP = GeneratedTask("kinship", make)
