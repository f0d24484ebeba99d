"""Calendar walks: from weekday to weekday, forward and back."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, different

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_EVENTS = ("concert", "exam", "trip", "party", "match", "lesson", "fair", "sale", "lunch", "race")
_FRAMES = (
    ("The {event} is on a {day}.", "The {event} is {n} days after the {last}.", "The {event} is {n} days before the {last}."),
    (
        "We have the {event} on {day}.",
        "{n} days after the {last} comes the {event}.",
        "{n} days before the {last} comes the {event}.",
    ),
    (
        "On {day} there is the {event}.",
        "Count {n} days on from the {last} for the {event}.",
        "Count {n} days back from the {last} for the {event}.",
    ),
    (
        "{day} is set for the {event}.",
        "The {event} follows the {last} by {n} days.",
        "The {event} precedes the {last} by {n} days.",
    ),
)
_ASKS = (
    "On which day is the {event}?",
    "What day is the {event}?",
    "Which weekday is the {event}?",
    "Name the day of the {event}.",
)


def _follow(day: int, walks: Sequence[tuple[str, str, int]]) -> Consequence:
    steps = []
    for event, sign, number in walks:
        reached = (day + (number if sign == "+" else -number)) % 7
        steps.append(f"{event}: {DAYS[day]} {sign} {number} days = {DAYS[reached]}")
        day = reached
    return Consequence(tuple(steps), DAYS[day])


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    opening, after, before = _FRAMES[wording]
    events = rng.sample(_EVENTS, num_steps + 1)
    day = rng.randrange(7)
    lines = [opening.format(event=events[0], day=DAYS[day])]
    steps, corrupted, walks, wrongs = [], [], [], []
    for last, event in zip(events, events[1:], strict=False):
        number, forward = rng.randint(2, 6), rng.random() < 0.6
        lines.append((after if forward else before).format(event=event, n=number, last=last))
        reached = (day + (number if forward else -number)) % 7
        sign = "+" if forward else "-"
        wrong = rng.choice([other for other in range(7) if other != reached])
        steps.append(f"{event}: {DAYS[day]} {sign} {number} days = {DAYS[reached]}")
        corrupted.append(f"{event}: {DAYS[day]} {sign} {number} days = {DAYS[wrong]}")
        walks.append((event, sign, number))
        wrongs.append(wrong)
        day = reached
    question = " ".join((*lines, _ASKS[wording].format(event=events[-1])))
    rivals = different(rng, DAYS, DAYS[day])
    follows = tuple(_follow(wrong, walks[place + 1 :]) for place, wrong in enumerate(wrongs))
    return Problem(question, tuple(steps), tuple(corrupted), DAYS[day], rivals, movable=tuple(lines), consequences=follows)


CALENDAR = GeneratedTask("calendar", make)
