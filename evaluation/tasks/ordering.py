"""Orderings: comparisons extend a line of people; every step writes the line so far."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, different

_NAMES = ("Ann", "Bob", "Cara", "Dan", "Eve", "Finn", "Gus", "Hope", "Ivy", "Joe", "Kim", "Lou", "Ned", "Pam", "Ray", "Sue")
_MORE = ("{one} is taller than {two}.", "{one} is older than {two}.", "{one} finished before {two}.", "{one} ranks above {two}.")
_LESS = (
    "{two} is shorter than {one}.",
    "{two} is younger than {one}.",
    "{two} finished after {one}.",
    "{two} ranks below {one}.",
)
_ASKS = (
    ("Who is the tallest?", "Who is the second tallest?", "Who is the shortest?"),
    ("Who is the oldest?", "Who is the second oldest?", "Who is the youngest?"),
    ("Who finished first?", "Who finished second?", "Who finished last?"),
    ("Who ranks at the top?", "Who ranks second?", "Who ranks at the bottom?"),
)


def _follow(line: Sequence[str], joins: Sequence[tuple[str, str]], asked: int) -> Consequence | None:
    """`joins` are (above, below) in turns. None where the false line no longer says on which side of others somebody stands."""
    line, steps = list(line), []
    for one, two in joins:
        if two == line[0]:
            line = [one, *line]
        elif one == line[-1]:
            line = [*line, two]
        else:
            return None
        steps.append(" > ".join(line))
    return Consequence(tuple(steps), (line[0], line[1], line[-1])[asked])


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    people = rng.sample(_NAMES, num_steps + 1)
    line, new = [people[0]], people[1:]
    clues, steps, corrupted, joins, wrongs = [], [], [], [], []
    for person in new:
        if rng.random() < 0.5:
            one, two, line = person, line[0], [person, *line]
        else:
            one, two, line = line[-1], person, [*line, person]
        clues.append(rng.choice((_MORE, _LESS))[wording].format(one=one, two=two))
        steps.append(" > ".join(line))
        wrong = list(line)
        place = rng.randrange(len(wrong) - 1)
        wrong[place], wrong[place + 1] = wrong[place + 1], wrong[place]
        corrupted.append(" > ".join(wrong))
        joins.append((one, two))
        wrongs.append(wrong)
    asked = rng.randrange(3)
    answer = (line[0], line[1], line[-1])[asked]
    question = " ".join((*clues, _ASKS[wording][asked]))
    rivals = different(rng, people, answer)
    follows = tuple(_follow(wrong, joins[place + 1 :], asked) for place, wrong in enumerate(wrongs))
    says = (r"^\s*(\w+) >", r"^\s*\w+ > (\w+)", r"> (\w+)\W*$")[asked]
    return Problem(question, tuple(steps), tuple(corrupted), answer, rivals, consequences=follows, concludes=says)


ORDERING = GeneratedTask("ordering", make)
