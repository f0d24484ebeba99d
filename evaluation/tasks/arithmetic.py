"""Arithmetic chains: a number changed step by step, every intermediate value written down."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, near_numbers

_WORDINGS = (
    ("Start with {start}. {ops}. What is the result?", {"+": "Add {n}", "-": "Subtract {n}", "*": "Multiply by {n}"}, ". "),
    (
        "Take the number {start}, then {ops}. What number do you get?",
        {"+": "add {n}", "-": "take away {n}", "*": "times {n}"},
        ", then ",
    ),
    ("A machine reads {start}. It does: {ops}. What does it print?", {"+": "plus {n}", "-": "minus {n}", "*": "times {n}"}, "; "),
    (
        "We begin at {start} and in turn {ops}. Where do we end?",
        {"+": "go up by {n}", "-": "go down by {n}", "*": "scale by {n}"},
        " and ",
    ),
)


def applied(value: int, sign: str, number: int) -> int:
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def following(value: int, changes: Sequence[tuple[str, int]], counted: str = "") -> Consequence:
    """What the changes make of the value, each step with what is counted, if anything is."""
    steps = []
    for sign, number in changes:
        after = applied(value, sign, number)
        steps.append(f"{value} {sign} {number} = {after} {counted}".rstrip())
        value = after
    return Consequence(tuple(steps), str(value))


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    template, verbs, joiner = _WORDINGS[wording]
    value = start = rng.randint(2, 20)
    ops, steps, corrupted, changes, wrongs = [], [], [], [], []
    for _ in range(num_steps):
        signs = ["+"] + (["-"] if value > 3 else []) + (["*"] if value <= 24 else [])
        sign = rng.choice(signs)
        upper = {"+": 20, "-": min(20, value - 1), "*": 4}[sign]
        number = rng.randint(2, max(2, upper))
        after = applied(value, sign, number)
        ops.append(verbs[sign].format(n=number))
        steps.append(f"{value} {sign} {number} = {after}")
        wrong = near_numbers(rng, after, 1)[0]
        corrupted.append(f"{value} {sign} {number} = {wrong}")
        changes.append((sign, number))
        wrongs.append(int(wrong))
        value = after
    question = template.format(start=start, ops=joiner.join(ops))
    follows = tuple(following(wrong, changes[place + 1 :]) for place, wrong in enumerate(wrongs))
    return Problem(question, tuple(steps), tuple(corrupted), str(value), near_numbers(rng, value), consequences=follows)


ARITHMETIC = GeneratedTask("arithmetic", make)
