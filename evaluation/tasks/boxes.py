"""Box swaps: things in boxes change places; every step writes the whole state."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.tasks.generated import Consequence, GeneratedTask, Problem, different

_THINGS = ("key", "coin", "ring", "ball", "pen", "cup", "shell", "card", "bell", "rope")
_HOLDS = ("Box {box} holds the {thing}.", "The {thing} is in box {box}.", "In box {box} lies the {thing}.", "Box {box}: {thing}.")
_SWAPS = (
    "Swap boxes {one} and {two}.",
    "Exchange what is in boxes {one} and {two}.",
    "The contents of boxes {one} and {two} change places.",
    "Trade {one} for {two}.",
)
_ASKS = (
    "What is in box {box}?",
    "Which thing is in box {box} now?",
    "What does box {box} hold at the end?",
    "Name the thing in box {box}.",
)


def _state(order: dict[str, str]) -> str:
    return ", ".join(f"{box} {thing}" for box, thing in order.items())


def _follow(order: dict[str, str], swaps: Sequence[tuple[str, str]], asked: str) -> Consequence:
    steps, order = [], dict(order)
    for one, two in swaps:
        order[one], order[two] = order[two], order[one]
        steps.append(f"Swap {one} {two}: {_state(order)}")
    return Consequence(tuple(steps), order[asked])


def make(rng: random.Random, num_steps: int, wording: int) -> Problem:
    boxes = "ABC" if rng.random() < 0.5 else "ABCD"
    things = rng.sample(_THINGS, len(boxes))
    order = dict(zip(boxes, things, strict=True))
    lines = [_HOLDS[wording].format(box=box, thing=thing) for box, thing in order.items()]
    holds, steps, corrupted, swaps, wrongs = tuple(lines), [], [], [], []
    for _ in range(num_steps):
        one, two = rng.sample(boxes, 2)
        order[one], order[two] = order[two], order[one]
        lines.append(_SWAPS[wording].format(one=one, two=two))
        steps.append(f"Swap {one} {two}: {_state(order)}")
        wrong_one, wrong_two = rng.choice([pair for pair in _pairs(boxes)])
        wrong = dict(order)
        wrong[wrong_one], wrong[wrong_two] = wrong[wrong_two], wrong[wrong_one]
        corrupted.append(f"Swap {one} {two}: {_state(wrong)}")
        swaps.append((one, two))
        wrongs.append(wrong)
    asked = rng.choice(boxes)
    question = " ".join((*lines, _ASKS[wording].format(box=asked)))
    answer = order[asked]
    rivals = different(rng, things, answer)
    follows = tuple(_follow(wrong, swaps[place + 1 :], asked) for place, wrong in enumerate(wrongs))
    says = rf":.*\b{asked} (\w+)"
    return Problem(question, tuple(steps), tuple(corrupted), answer, rivals, movable=holds, consequences=follows, concludes=says)


def _pairs(boxes: str) -> list[tuple[str, str]]:
    return [(one, two) for index, one in enumerate(boxes) for two in boxes[index + 1 :]]


BOXES = GeneratedTask("boxes", make)
