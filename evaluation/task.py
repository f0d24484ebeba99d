"""A task: examples in disjoint splits, the prompt they are asked with, and what a right completion is."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from engine.decoding.answer import ANSWER_CUE
from engine.decoding.answer import comparable as comparable
from engine.decoding.answer import first_answer as first_answer
from engine.decoding.answer import said as said
from engine.decoding.answer import same_answer as same_answer
from engine.decoding.chain import parted_by_any

Split = Literal["train", "search", "select", "gate"]
SPLITS: tuple[Split, ...] = ("train", "search", "select", "gate")

# Cumulative shares of the group-key hash: 55 % of all groups may be trained on, the rest is read only.
_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.55), ("search", 0.70), ("select", 0.85), ("gate", 1.0))

REASON = "Think step by step, one step a line. End with a line that starts with Answer:"
DIRECT = "Give only the answer, on one line that starts with Answer:"


@dataclass(frozen=True)
class Example:
    """One question. `group` is the unit of splitting and of clustering: examples that share it never part."""

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] | None = None  # texts of all options, the right one among them; None when open
    rationale: str | None = None  # one step a line, without the answer line
    context: str | None = None
    group: str = ""
    listed: bool = True  # the prompt lists the choices; False: they are only scored

    def __post_init__(self) -> None:
        if self.choices is not None and self.answer not in self.choices:
            raise ValueError(
                f"The answer must be one of the choices, but example {self.id!r} has {self.answer!r} "
                f"and choices {list(self.choices)!r}. Correct the row, or leave its choices empty."
            )

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(line for line in (self.rationale or "").splitlines() if line.strip())

    @property
    def chain(self) -> str:
        """The gold completion: every step on its line, then the answer line."""
        return "\n".join((*self.steps, answer_line(self.answer)))


@runtime_checkable
class Task(Protocol):
    """Where examples come from. The same `(split, count, seed)` gives the same examples everywhere."""

    @property
    def name(self) -> str: ...

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        """At most `count` examples of the split; fewer only when the split holds no more."""
        ...


@runtime_checkable
class SelfJudging(Task, Protocol):
    """A task that says itself what is right, because more than its gold answer is, or because it is stricter."""

    def is_right(self, example: Example, completion: str) -> bool: ...


def is_right(task: Task, example: Example, completion: str) -> bool:
    """Whether the completion's first answer is right: the gold one, unless the task judges for itself."""
    if isinstance(task, SelfJudging):
        return task.is_right(example, completion)
    return same_answer(first_answer(completion), example.answer)


def is_right_answer(task: Task, example: Example, answer: str) -> bool:
    """The same of an answer alone, without the line that it stands in."""
    return is_right(task, example, answer_line(answer))


def answer_line(answer: str) -> str:
    return f"{ANSWER_CUE} {answer}"


def question_text(example: Example) -> str:
    """Context, question and, where they are listed, options, as the user's turn states them, without an instruction."""
    parts = [example.context, example.question]
    if example.choices is not None and example.listed:
        parts.append("Options: " + "; ".join(example.choices))
    return "\n".join(part for part in parts if part)


def reasoning_prompt(example: Example) -> str:
    return f"{question_text(example)}\n{REASON}"


def direct_prompt(example: Example) -> str:
    return f"{question_text(example)}\n{DIRECT}"


def normalise(text: str) -> str:
    """Lower case, letters, digits and single spaces: what two wordings of one question share."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def split_of(group: str, held_out: bool = False) -> Split:
    """The split that a group key belongs to, for ever: SHA-256 of the key against fixed shares.

    A task that is `held_out` is never trained on: its groups go to the other three splits alike.
    """
    fraction = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if held_out:
        return SPLITS[1:][min(2, int(3 * fraction))]
    return next(split for split, upper in _SHARES if fraction < upper or upper == 1.0)


@dataclass(frozen=True)
class Trace:
    """A completion as it is judged: by its first answer. What is written after that answer belongs to no reasoning."""

    steps: tuple[str, ...]
    answer: str | None  # None when the completion never gives one
    after: tuple[str, ...]


def trace_of(completion: str) -> Trace:
    """Steps and what comes after are lines that hold text; the answer is the rest of the line of the first `Answer:`.

    Where the model thinks between markers, that is the first one behind them, and what stands between them is steps.
    """
    chain, answer = parted_by_any(completion) or ("", completion)
    before, _, rest = answer.partition(ANSWER_CUE)
    return Trace((*_lines(chain), *_lines(before)), first_answer(completion), _lines(rest.partition("\n")[2]))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
