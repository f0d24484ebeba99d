"""Deduction over a fictional ontology: rules in random order, a distracting chain beside the right one."""

from __future__ import annotations

import random

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, different

_KINDS = (
    "wumpus", "yumpus", "zumpus", "dumpus", "rompus", "numpus", "tumpus", "vumpus", "impus", "jompus",
    "gorpus", "shumpus", "lempus", "sterpus", "grimpus", "brimpus",
)  # fmt: skip
_NAMES = ("Alex", "Fae", "Max", "Polly", "Rex", "Sally", "Stella", "Wren")
_TRAITS = ("red", "blue", "green", "small", "large", "cold", "hot", "kind", "shy", "loud")
_RULES = (
    "Every {one} is a {two}.",
    "All {one} things are {two} things.",
    "Each {one} is also a {two}.",
    "Any {one} counts as a {two}.",
)
_TRAIT_RULES = ("Every {one} is {trait}.", "All {one} things are {trait}.", "Each {one} is {trait}.", "Any {one} is {trait}.")
_ASKS = ("What is {name} like?", "Which word describes {name}?", "What can we say of {name}?", "Describe {name} in one word.")


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    hops = num_steps - 1  # the last step reads the trait
    kinds = rng.sample(_KINDS, 2 * hops + 2)
    chain, other = kinds[: hops + 1], kinds[hops + 1 :]
    name, (trait, wrong_trait) = rng.choice(_NAMES), rng.sample(_TRAITS, 2)
    rules = [
        _RULES[wording].format(one=one, two=two) for line in (chain, other) for one, two in zip(line, line[1:], strict=False)
    ]
    rules.append(_TRAIT_RULES[wording].format(one=chain[-1], trait=trait))
    rules.append(_TRAIT_RULES[wording].format(one=other[-1], trait=wrong_trait))
    rng.shuffle(rules)
    steps, corrupted, follows = [], [], []
    for one, two in zip(chain, chain[1:], strict=False):
        steps.append(f"{name} is a {one}, so {name} is a {two}")
        wrong = rng.choice(other)
        corrupted.append(f"{name} is a {one}, so {name} is a {wrong}")
        # The distracting chain is among the rules: whoever is on it walks it to its end.
        left = other[other.index(wrong) :]
        walked = [f"{name} is a {here}, so {name} is a {there}" for here, there in zip(left, left[1:], strict=False)]
        follows.append(Consequence((*walked, f"{name} is a {other[-1]}, so {name} is {wrong_trait}"), wrong_trait))
    steps.append(f"{name} is a {chain[-1]}, so {name} is {trait}")
    corrupted.append(f"{name} is a {chain[-1]}, so {name} is {wrong_trait}")
    follows.append(Consequence((), wrong_trait))
    question = " ".join((*rules, f"{name} is a {chain[0]}.", _ASKS[wording].format(name=name)))
    rivals = (wrong_trait, *different(rng, [t for t in _TRAITS if t != wrong_trait], trait, 2))
    facts = tuple(f"{name} is a {kind}" for kind in chain)
    return Problem(question, tuple(steps), tuple(corrupted), trait, rivals, facts, consequences=tuple(follows))


DEDUCTION = GeneratedTask("deduction", make)
