"""Which option an adapter prefers with literature at hand, and which without: option scoring, nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.measures.choice import options_of
from evaluation.task import Example, Task, answer_line, direct_prompt, same_answer


class Asked(NamedTuple):
    row: int
    example: Example
    texts: tuple[str, ...]


class Likeliest(NamedTuple):
    """Of one row: the likeliest option with its texts, and without them."""

    row: int
    augmented: str
    naive: str
    is_kept: bool  # the augmented one is right: a wrong answer is not to be learnt

    @property
    def is_same(self) -> bool:
        return same_answer(self.augmented, self.naive)


def augmented_prompt(example: Example, texts: Sequence[str]) -> str:
    return "\n".join(("Related literature:", *texts, direct_prompt(example)))


def preferences(engine: Engine, backbone: Backbone, profile: str | None, task: Task, asked: Sequence[Asked]) -> list[Likeliest]:
    """An option's score is the mean log-probability of its tokens as the answer; of two alike the first option's."""
    prefix = len(backbone.encode(answer_line("").rstrip()))
    options = [options_of(task, one.example) for one in asked]
    prompts = [
        (backbone.chat_ids(augmented_prompt(one.example, one.texts)), backbone.chat_ids(direct_prompt(one.example)))
        for one in asked
    ]
    continuations = [
        Continuation(prompt, tuple(backbone.encode(answer_line(option))), prefix)
        for both, listed in zip(prompts, options, strict=True)
        for prompt in both
        for option in sorted(listed)
    ]
    scores = iter(engine.score(continuations, profile))
    found = []
    for one, listed in zip(asked, options, strict=True):
        augmented, naive = (_likeliest(sorted(listed), [next(scores) for _ in listed]) for _ in range(2))
        found.append(Likeliest(one.row, augmented, naive, same_answer(augmented, one.example.answer)))
    return found


def _likeliest(options: Sequence[str], scores: Sequence[Sequence[float]]) -> str:
    means = [sum(tokens) / len(tokens) for tokens in scores]
    return options[means.index(max(means))]
