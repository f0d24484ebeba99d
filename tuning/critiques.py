"""Critiques in words: a question, a response to it, and what a critic says of the response.

Every sentence has several wordings, so that a fit does not learn one of them by heart; the last of each is held out and shows
whether it learnt more than the others' form.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from evaluation.task import Example, answer_line, question_text
from tuning.mistakes import Response

VERDICTS = {True: "Conclusion: right", False: "Conclusion: wrong"}

ASKED = (
    "Somebody solved the problem below. Say whether the solution is right and, if it is not, where it first goes wrong. {ends}"
    "\n\nQuestion:\n{question}\n\nSolution:\n{response}",
    "Question:\n{question}\n\nSolution:\n{response}\n\nRead the solution line by line. Is every line right? Name the first that "
    "is not. {ends}",
    "You check a student's work. {ends}\n\nThe question was:\n{question}\n\nThe student wrote:\n{response}",
    "Question:\n{question}\n\nProposed solution:\n{response}\n\nGive a short critique of it. {ends}",
    "Here is a question and an attempt at it.\n\n{question}\n\n{response}\n\nReview the attempt. {ends}",
)
ENDS = f"End with {VERDICTS[True]} or {VERDICTS[False]}."

PRAISES = (
    "All {count} lines hold, one after the other.",
    "I find no mistake: every line follows, and the last one answers the question.",
    "Nothing is wrong in any of the {count} lines.",
    "Each line is true given the ones before it, up to the answer.",
    "The attempt is sound throughout.",
)
OBJECTIONS = (
    'Line {number} is wrong: it says "{said}", but it should be "{meant}". What comes after it rests on the mistake.',
    'All is well before line {number}. There "{said}" is false; "{meant}" is what follows.',
    'The first mistake is in line {number}, where "{meant}" was due and "{said}" is written.',
    'In line {number} I expected "{meant}", not "{said}".',
    'The attempt breaks at line {number}: not "{said}" but "{meant}".',
)


@dataclass(frozen=True)
class Critique:
    """`wrong_at` is the place of the first wrong line as the critic found it, None for a right response."""

    example: Example
    response: Response
    wrong_at: int | None

    @property
    def is_right(self) -> bool:
        return self.wrong_at is None

    def asked(self, rng: random.Random, held_out: bool = False) -> str:
        return _wording(ASKED, rng, held_out).format(question=question_text(self.example), response=self.response.text, ends=ENDS)

    def said(self, rng: random.Random, held_out: bool = False) -> str:
        if self.wrong_at is None:
            found = _wording(PRAISES, rng, held_out).format(count=len(self.response.lines))
        else:
            meant = (*self.example.steps, answer_line(self.example.answer))
            found = _wording(OBJECTIONS, rng, held_out).format(
                number=self.wrong_at + 1,
                said=self.response.lines[self.wrong_at],
                meant=meant[min(self.wrong_at, len(meant) - 1)],
            )
        return f"{found}\n{VERDICTS[self.is_right]}"


def _wording(wordings: tuple[str, ...], rng: random.Random, held_out: bool) -> str:
    return wordings[-1] if held_out else rng.choice(wordings[:-1])
