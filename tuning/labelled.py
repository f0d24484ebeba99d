"""Explanations with a known score: sound ones, and ones that miss one criterion of a rubric by a known share.

Acceptability is missed by going astray, relevance by steps of another problem, sufficiency by leaving steps out, consistency by
another answer than the steps arrive at.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from evaluation.rubric import Criterion, Rubric
from evaluation.task import Example, answer_line, question_text, same_answer
from tuning.mistakes import MAX_DONORS, Posed, Response, astray, first_wrong, gold

UNGUIDED = (
    "How good is this explanation?\n\nQuestion:\n{question}\n\nExplanation:\n{explanation}\n\n"
    'Reply with exactly these two lines:\nEvidence: "the passage"\nScore: a whole number from {lowest} to {highest}'
)


@dataclass(frozen=True)
class Labelled:
    """`share` is how far the response meets the criterion, 0 .. 1; `evidence` the line that decides it."""

    example: Example
    response: Response
    criterion: Criterion
    share: float
    evidence: str

    def score(self, rubric: Rubric) -> int:
        return rubric.lowest + round(self.share * (rubric.highest - rubric.lowest))

    def asked(self, rubric: Rubric, guided: bool) -> str:
        """Guided: what a judge is asked, with the criterion's definition; otherwise for a score, and not of what."""
        question = question_text(self.example)
        if guided:
            return rubric.question(self.criterion, question, self.response.text)
        return UNGUIDED.format(question=question, explanation=self.response.text, lowest=rubric.lowest, highest=rubric.highest)

    def said(self, rubric: Rubric) -> str:
        return f'Evidence: "{self.evidence}"\nScore: {self.score(rubric)}'


class Flaw(NamedTuple):
    """A response that misses a criterion, how far it still meets it, and the line that shows it."""

    response: Response
    share: float
    evidence: str


def labelled(posed: Posed, criterion: Criterion, rng: random.Random) -> tuple[Labelled, ...]:
    """An explanation that meets the criterion and one that misses it; none where it cannot be missed knowingly.

    What meets acceptability has, every other time, a wrong answer after its true steps: whoever scores explanations without
    reading what is asked of them cannot be right on both.
    """
    example, sound = posed.example, gold(posed.example)
    flaw = FLAWS[criterion.name](posed, rng) if criterion.name in FLAWS else None
    if flaw is None or first_wrong(posed.task, example, sound) is not None:
        return ()
    at = sound.lines[-1] if criterion.name == "consistency" else rng.choice(sound.steps)
    if criterion.name == "acceptability" and rng.random() < 0.5 and (other := _inconsistent(posed, rng)):
        sound = other.response
    return Labelled(example, sound, criterion, 1.0, at), Labelled(example, flaw.response, criterion, *flaw[1:])


def _other(posed: Posed, rng: random.Random) -> Example | None:
    """A row of another answer."""
    donors = rng.sample(posed.others, min(MAX_DONORS, len(posed.others)))
    return next((other for other in donors if not same_answer(other.answer, posed.example.answer)), None)


def _false(posed: Posed, rng: random.Random) -> Flaw | None:
    """What rests on a false step is no better than it."""
    response = astray(posed.task, posed.example, posed.others, rng)
    place = first_wrong(posed.task, posed.example, response) if response else None
    if response is None or place is None or place >= len(response.steps):
        return None
    return Flaw(response, place / len(response.steps), response.steps[place])


def _idle(posed: Posed, rng: random.Random) -> Flaw | None:
    own, other = posed.example.steps, _other(posed, rng)
    foreign = [step for step in other.steps if step not in own] if other else []
    if not foreign:
        return None
    added = rng.sample(foreign, rng.randint(1, min(len(foreign), len(own))))
    steps = list(own)
    for step in added:
        steps.insert(rng.randrange(len(steps) + 1), step)
    return Flaw(Response(tuple(steps), posed.example.answer), 1 - len(added) / len(steps), added[0])


def _missing(posed: Posed, rng: random.Random) -> Flaw | None:
    own = posed.example.steps
    kept = sorted(rng.sample(range(len(own)), rng.randrange(len(own))))
    response = Response(tuple(own[place] for place in kept), posed.example.answer)
    return Flaw(response, len(kept) / len(own), response.lines[-1])


def _inconsistent(posed: Posed, rng: random.Random) -> Flaw | None:
    example, other = posed.example, _other(posed, rng)
    rivals = [*(example.choices or ()), *([other.answer] if other else [])]
    wrong = [rival for rival in rivals if not same_answer(rival, example.answer)]
    if not wrong:
        return None
    answer = rng.choice(wrong)
    return Flaw(Response(example.steps, answer), 0.0, answer_line(answer))


FLAWS: dict[str, Callable[[Posed, random.Random], Flaw | None]] = {
    "acceptability": _false,
    "relevance": _idle,
    "sufficiency": _missing,
    "consistency": _inconsistent,
}
