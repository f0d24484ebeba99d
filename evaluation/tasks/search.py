"""Search of growing depth: a maze by depth first, arrangements in order, a tally. Every step is known and checked.

What a depth asks for is systematic: the way that comes first is tried first, nothing is left out, nothing is done twice
(Lu et al. 2025, arXiv 2505.20296, sections 2 and 4). Read a sweep over depths: one alone sits on a plateau or on the floor.
"""

from __future__ import annotations

import itertools
import random

from evaluation.tasks.generated import GeneratedTask, Problem, different, near_numbers

SEARCH_DEPTHS = (2, 3, 4, 5, 6)
_ROOMS = "BCDEFGHJKLMNPQRSTUVWXYZ"
_THINGS = ("key", "coin", "ring", "ball", "pen", "cup", "shell", "card", "bell", "rope")

_DOORS = (
    "{room} leads to {one} and {two}.",
    "From {room} go to {one} or {two}.",
    "{room} opens to {one} and {two}.",
    "{room}: {one}, {two}.",
)
_MAZES = (
    "The exit is {exit}. Search from A, first door first. Which path leads out?",
    "{exit} is the way out. Start in A and try doors in the order given. What is the path?",
    "You are in A and want to reach {exit}. Take doors as listed. Name the path.",
    "Find {exit} from A by trying each door in turn. Give the path.",
)
_ARRANGEMENTS = (
    "Arrange {letters} in alphabetical order of the arrangements. Which is number {count}?",
    "List the orders of {letters} alphabetically. What is order number {count}?",
    "Write down all ways to order {letters}, as in a dictionary. Which comes at place {count}?",
    "Sort every ordering of {letters}. Name number {count}.",
)
_TALLIES = (
    "On the table: {row}. How many times is there a {thing}?",
    "A bag holds {row}. Count each {thing}. How many are there?",
    "In a line stand {row}. How often does {thing} occur?",
    "Go through {row}. Number of {thing}?",
)


def make_maze(rng: random.Random, depth: int, wording: int) -> Problem:
    """Each of `depth` rooms has two doors: one is a dead end, the other goes on, in either order."""
    names = rng.sample(_ROOMS, 2 * depth)
    path, dead = ["A", *names[:depth]], names[depth:]
    doors, steps = [], []
    for level, (room, onward, end) in enumerate(zip(path, path[1:], dead, strict=False)):
        first_is_dead = rng.random() < 0.5
        one, two = (end, onward) if first_is_dead else (onward, end)
        doors.append(_DOORS[wording].format(room=room, one=one, two=two))
        if first_is_dead:
            steps.append(f"Enter {end}: dead end")
        reached = " ".join(path[: level + 2])
        steps.append(f"Enter {onward}: path {reached}")
    corrupted = [step.replace("dead end", f"path A {rng.choice(dead)}") if "dead" in step else f"{step[:-1]}A" for step in steps]
    shown = rng.sample(doors, len(doors))
    question = " ".join((*shown, _MAZES[wording].format(exit=path[-1])))
    answer = " ".join(path)
    wrong = [" ".join((*path[:place], end, *path[place + 1 :])) for place, end in enumerate(dead, start=1)]
    return Problem(question, tuple(steps), tuple(corrupted), answer, different(rng, wrong, answer), concludes=r"path ([A-Z ]+\b)")


def make_arrangements(rng: random.Random, depth: int, wording: int) -> Problem:
    """The first `depth` permutations of four letters, each from the one before."""
    letters = sorted(rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 4))
    ordered = [" ".join(order) for order in itertools.islice(itertools.permutations(letters), depth + 3)]
    listed = ordered[:depth]
    steps = [f"{number}: {order}" for number, order in enumerate(listed, start=1)]
    corrupted = [f"{number}: {rng.choice([o for o in ordered if o != order])}" for number, order in enumerate(listed, start=1)]
    mixed = " ".join(rng.sample(letters, 4))
    question = _ARRANGEMENTS[wording].format(letters=mixed, count=depth)
    return Problem(
        question,
        tuple(steps),
        tuple(corrupted),
        listed[-1],
        different(rng, ordered, listed[-1]),
        concludes=r":\s*([A-Z ]+\b)",
    )


def make_tally(rng: random.Random, depth: int, wording: int) -> Problem:
    """Twice `depth` things, gone through one by one."""
    thing, *others = rng.sample(_THINGS, 3)
    row = [thing if rng.random() < 0.5 else rng.choice(others) for _ in range(2 * depth)]
    count, steps, corrupted = 0, [], []
    for place, found in enumerate(row, start=1):
        count += found == thing
        steps.append(f"{place} {found}: {count}")
        corrupted.append(f"{place} {found}: {near_numbers(rng, count, 1)[0]}")
    question = _TALLIES[wording].format(row=", ".join(row), thing=thing)
    return Problem(question, tuple(steps), tuple(corrupted), str(count), near_numbers(rng, count))


MAZE = GeneratedTask("maze", make_maze, lengths=SEARCH_DEPTHS)
ARRANGEMENTS = GeneratedTask("arrangements", make_arrangements, lengths=SEARCH_DEPTHS)
TALLY = GeneratedTask("tally", make_tally, lengths=SEARCH_DEPTHS)
