"""False belief: where a thing is, where it was, where somebody will look for it, and where another thinks that they will.

Own generator on the plan of the Sally-Anne test. A set is two twin stories, word for word alike but for one sentence: in one the
owner sees the thing moved (true belief), in the other not (false belief). Each story is asked four questions, so that a set is
eight items and one group. Against shortcuts:

- the mover knows what the owner saw in every other set and is mistaken in the rest, so that the second order is not the first;
- whether the owner stays or leaves does not tell whether they see it;
- each container is named first by the scene, and last by the story's end, equally often;
- people, things and containers are nonce words, drawn anew, that no domain has an opinion about.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evaluation.task import Example, Split, split_of

Order = Literal["reality", "memory", "first", "second"]
ORDERS: tuple[Order, ...] = ("reality", "memory", "first", "second")
_LETTERS = ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou", "kvz")  # few English words end so

_SCENES = (
    "There is a {one} and a {other} in the room.",
    "The room holds a {one} and a {other}.",
    "In the room stand a {one} and a {other}.",
)
_PUTS = (
    "{owner} puts the {thing} in the {start}.",
    "{owner} lays the {thing} into the {start}.",
    "{owner} has the {thing} in the {start}.",
)
# By whether the mover knows what the owner sees, and whether the owner sees it.
_WITNESS = {
    (True, True): "{owner} stays in the room and watches. {mover} knows this.",
    (True, False): "{owner} leaves the room and walks away. {mover} knows this.",
    (False, True): "{owner} leaves the room but watches through the window. {mover} thinks that {owner} walked away.",
    (False, False): "{owner} stays in the room but falls asleep. {mover} thinks that {owner} is watching.",
}
_MOVES = (
    "{mover} moves the {thing} to the {end}.",
    "{mover} takes the {thing} over to the {end}.",
    "{mover} shifts the {thing} to the {end}.",
)
_ENDS = ("{mover} sits down beside the {last}.", "Then {mover} walks past the {last}.", "{mover} leans on the {last}.")
_ASKS: dict[Order, str] = {
    "reality": "Where is the {thing} now?",
    "memory": "Where was the {thing} at the beginning?",
    "first": "Where will {owner} look for the {thing}?",
    "second": "Where does {mover} think that {owner} will look for the {thing}?",
}


@dataclass(frozen=True)
class Asked:
    """What an example of the task is, read from its id: `belief/seed/index/twin/order`."""

    story_set: str
    owner_saw: bool
    mover_knows: bool  # what the owner saw
    order: Order

    @classmethod
    def of(cls, example: Example) -> Asked:
        story_set, twin, order = example.id.rsplit("/", 2)
        belief, _, known = twin.partition("-")
        return cls(story_set, belief == "true", known == "known", next(one for one in ORDERS if one == order))

    @property
    def is_about_belief(self) -> bool:
        return self.order in ("first", "second")

    @property
    def answer_is_real(self) -> bool:
        """Whether the right answer is where the thing is: in the second order, to the mover's mind."""
        if self.order == "second":
            return self.owner_saw == self.mover_knows
        return self.order == "reality" or (self.order == "first" and self.owner_saw)


@dataclass(frozen=True)
class BeliefTask:
    name: str = "belief"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        """Set after set, the true belief first; the last one may be cut.

        64 items are eight sets, over which everything is balanced; an interval that draws sets wants ten, which are 80 items.
        """
        found: list[Example] = []
        for place, (index, words) in enumerate(_drawn(split, seed)):
            if len(found) >= count:
                break
            found.extend(_set(f"{self.name}/{seed}/{index}", words, place))
        return found[:count]


@dataclass(frozen=True)
class _Words:
    owner: str
    mover: str
    thing: str
    start: str
    end: str

    @property
    def group(self) -> str:
        return f"belief {self.owner} {self.mover} {self.thing} {self.start} {self.end}"


def _drawn(split: Split, seed: int) -> Iterator[tuple[int, _Words]]:
    """Words whose stories belong to the split, without end, with the index of the draw; the same words never twice."""
    seen, index = set(), 0
    while True:
        rng = random.Random(f"belief/{seed}/{index}")
        drawn: list[str] = []
        while len(drawn) < 5:
            word = "".join(map(rng.choice, _LETTERS))
            if word not in drawn:
                drawn.append(word)
        words = _Words(drawn[0].capitalize(), drawn[1].capitalize(), *drawn[2:])
        if words.group not in seen and split_of(words.group) == split:
            seen.add(words.group)
            yield index, words
        index += 1


def _set(set_id: str, words: _Words, place: int) -> Iterator[Example]:
    """The place in the split decides what is balanced over eight sets: who knows, which container is first, which is last."""
    knows, starts_first, starts_last = (bool(place >> bit & 1) for bit in range(3))
    rng = random.Random(f"{set_id}/wording")
    scene, puts, moves, ends = (rng.choice(texts) for texts in (_SCENES, _PUTS, _MOVES, _ENDS))
    one, other = (words.start, words.end) if starts_first else (words.end, words.start)
    last = words.start if starts_last else words.end
    for sees in (True, False):
        lines = (scene, puts, _WITNESS[knows, sees], moves, ends)
        story = " ".join(lines).format(**vars(words), one=one, other=other, last=last)
        believed = words.end if sees else words.start
        # Where the mover is mistaken about what the owner saw, the second order is the other place.
        attributed = believed if knows else words.start if sees else words.end
        answers = {"reality": words.end, "memory": words.start, "first": believed, "second": attributed}
        for order in ORDERS:
            yield Example(
                id=f"{set_id}/{'true' if sees else 'false'}-{'known' if knows else 'mistaken'}/{order}",
                question=f"{story} {_ASKS[order].format(**vars(words))}",
                answer=answers[order],
                choices=tuple(rng.sample((words.start, words.end), 2)),
                group=words.group,
            )


BELIEF = BeliefTask()
