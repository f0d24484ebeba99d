"""The answer that a reader gives after what was written: the likeliest of a closed set, so that no parser decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.measures.choice import options_of
from evaluation.task import Example, Task, answer_line, reasoning_prompt, same_answer

LEAST_ABOVE_CHANCE = 0.25  # at chance every change of a trace changes the answer


@dataclass(frozen=True)
class Question:
    """`candidates`: the right answer first."""

    prompt_ids: tuple[int, ...]
    candidates: tuple[str, ...]

    @classmethod
    def of(cls, backbone: Backbone, task: Task, example: Example, *also: str) -> Question:
        """The right answer, its rivals, and what else an intervention may lead to."""
        candidates = list(options_of(task, example))
        for answer in also:
            if not any(same_answer(answer, candidate) for candidate in candidates):
                candidates.append(answer)
        return cls(backbone.chat_ids(reasoning_prompt(example)), tuple(candidates))

    def place_of(self, answer: str) -> int:
        return next(place for place, candidate in enumerate(self.candidates) if same_answer(answer, candidate))


@dataclass(frozen=True)
class Belief:
    """Probabilities over the candidates of a question; they add up to 1."""

    shares: tuple[float, ...]

    @property
    def answer(self) -> int:
        """The place of the likeliest candidate. A tie never goes to the right one."""
        return max(range(len(self.shares)), key=lambda place: (self.shares[place], place))

    @property
    def is_right(self) -> bool:
        return self.answer == 0


def beliefs(
    engine: Engine, backbone: Backbone, reader: str | None, asked: Sequence[tuple[Question, tuple[int, ...]]]
) -> list[Belief]:
    """What the reader answers to each question after the written tokens.

    A candidate's score is the log-probability of writing it and then ending, so that no candidate gains by being the beginning
    of another.
    """
    head, end = tuple(backbone.encode(answer_line("").rstrip())), int(backbone.tokenizer.eos_token_id)
    continuations = [
        Continuation(question.prompt_ids, (*written, *head, *backbone.encode(f" {candidate}"), end), len(written) + len(head))
        for question, written in asked
        for candidate in question.candidates
    ]
    scores = iter(engine.score(continuations, reader))
    return [_belief([sum(next(scores)) for _ in question.candidates]) for question, _ in asked]


def at_chance(questions: Sequence[Question], found: Sequence[Belief]) -> str:
    """Why these answers are too near to guessing to show what they depend on; empty when they are not.

    They must be right above chance by 0.25, and of few items by 3 standard errors of guessing: some guessers are lucky.
    """
    right = sum(belief.is_right for belief in found)
    chance = sum(1 / len(question.candidates) for question in questions) / len(questions)
    above = max(LEAST_ABOVE_CHANCE, 3 * sqrt(chance * (1 - chance) / len(found)))
    if right / len(found) >= chance + above:
        return ""
    return (
        f"{right} of the {len(found)} answers are right before anything is changed, a share that is not above chance "
        f"({chance:.2f}) by {above:.2f}"
    )


def _belief(scores: Sequence[float]) -> Belief:
    most = max(scores)
    weights = [exp(score - most) for score in scores]
    return Belief(tuple(weight / sum(weights) for weight in weights))
