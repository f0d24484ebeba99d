"""Word problems: a small story about a quantity; every step is one change with its unit."""

from __future__ import annotations

import random

from evaluation.tasks.arithmetic import applied, following
from evaluation.tasks.generated import GeneratedTask, Problem, near_numbers

_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Jack", "Emma", "Max", "Rosa", "Leo", "Nina")
_THINGS = ("apples", "books", "coins", "cards", "pens", "eggs", "shells", "stamps", "cups", "stones")
_MORE = (
    "{name} buys {n} more {thing}",
    "{name} finds {n} {thing}",
    "a friend gives {name} {n} {thing}",
    "{name} picks up another {n} {thing}",
)
_LESS = (
    "{name} gives away {n} {thing}",
    "{name} loses {n} {thing}",
    "{name} sells {n} {thing}",
    "{name} leaves {n} {thing} behind",
)
_TIMES = (
    "{name} goes home and has {n} times as many {thing}",
    "the number of {thing} grows to {n} times what it was",
    "{name} now owns {n} times the number of {thing}",
    "the {thing} multiply by {n}",
)
_FRAMES = (
    ("{name} has {start} {thing}.", "How many {thing} does {name} have now?"),
    ("At first {name} owns {start} {thing}.", "How many {thing} are left with {name} at the end?"),
    ("There are {start} {thing} in the bag of {name}.", "How many {thing} are in the bag now?"),
    ("{name} starts the day with {start} {thing}.", "What number of {thing} does {name} end with?"),
)


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    opening, closing = _FRAMES[wording]
    value = start = rng.randint(3, 25)
    sentences, steps, corrupted, changes, wrongs = [], [], [], [], []
    for _ in range(num_steps):
        signs = ["+"] + (["-"] if value > 4 else []) + (["*"] if value <= 20 else [])
        sign = rng.choice(signs)
        number = rng.randint(2, {"+": 20, "-": min(20, value - 2), "*": 3}[sign])
        after = applied(value, sign, number)
        phrase = {"+": _MORE, "-": _LESS, "*": _TIMES}[sign][wording].format(name=name, n=number, thing=thing)
        sentences.append(f"Then {phrase}.")
        steps.append(f"{value} {sign} {number} = {after} {thing}")
        wrong = near_numbers(rng, after, 1)[0]
        corrupted.append(f"{value} {sign} {number} = {wrong} {thing}")
        changes.append((sign, number))
        wrongs.append(int(wrong))
        value = after
    first = opening.format(name=name, start=start, thing=thing)
    question = " ".join((first, *sentences, closing.format(name=name, thing=thing)))
    rivals = near_numbers(rng, value)
    follows = tuple(following(wrong, changes[place + 1 :], thing) for place, wrong in enumerate(wrongs))
    says = r"=\s*(-?\d+)"
    return Problem(question, tuple(steps), tuple(corrupted), str(value), rivals, consequences=follows, concludes=says)


WORD_PROBLEM = GeneratedTask("word_problem", make)
