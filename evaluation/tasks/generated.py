"""Generated reasoning tasks: problems made from a seed, with every step known and every step checkable."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluation.task import Example, Split, Task, normalise, same_answer, split_of, trace_of

TRAINED_LENGTHS = (2, 3, 4)
HELD_OUT_LENGTHS = (5, 6)
LAST_WORD = r"(-?\w+)\W*$"


@dataclass(frozen=True)
class Consequence:
    """What follows from a false step: every later step computed from it, and the answer that they imply."""

    steps: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Problem:
    """One problem with its gold chain. `corrupted[i]` is step i made false, with all else kept.

    `consequences[i]` is what follows from `corrupted[i]`, None where nothing does; it is empty for a family that cannot say.
    """

    question: str
    steps: tuple[str, ...]
    corrupted: tuple[str, ...]
    answer: str
    rivals: tuple[str, ...]  # wrong answers of the same type, for two-choice and cloze scoring
    facts: tuple[str, ...] = ()  # other statements that the question entails: valid steps, though not needed
    movable: tuple[str, ...] = ()  # statements whose order in the question says nothing, and is always this one in training
    consequences: tuple[Consequence | None, ...] = ()
    concludes: str = LAST_WORD  # a regular expression: its group, in a step that derives a value for what is asked, is that value


# From the problem's own randomness, the number of its steps and its wording.
Make = Callable[[random.Random, int, int], Problem]


@dataclass(frozen=True)
class StepCheck:
    """What a verifier found in one completion. `valid[i]` is about the i-th line written beside the answer line."""

    valid: tuple[bool, ...]
    complete: bool  # every gold step was written
    answered: bool
    answer_right: bool

    @property
    def all_right(self) -> bool:
        return self.complete and all(self.valid) and self.answer_right

    @property
    def validity(self) -> float:
        return sum(self.valid) / len(self.valid) if self.valid else 0.0


@dataclass(frozen=True)
class GeneratedTask:
    """A family: `make(rng, num_steps, wording)` draws one problem. The last wording is held out from training.

    `variants` draw, by name, problems that differ from the family's in what it never shows.
    """

    name: str
    make: Make
    num_wordings: int = 4
    lengths: tuple[int, ...] = TRAINED_LENGTHS
    held_out_wording: bool = False
    variants: tuple[tuple[str, Make], ...] = ()

    def problem(self, example_id: str) -> Problem:
        """The problem behind an example's id: `family/seed/index/steps/wording`."""
        _, _, _, num_steps, wording = example_id.split("/")
        return self.make(random.Random(example_id), int(num_steps), int(wording))

    def example(self, example_id: str) -> Example:
        """The example of an id; of another family's id, the like of that example in this family."""
        problem = self.problem(example_id)
        *_, num_steps, wording = example_id.split("/")
        return Example(
            id=example_id,
            question=problem.question,
            answer=problem.answer,
            rationale="\n".join(problem.steps),
            group=f"{self.name}/{num_steps}/{wording}",
        )

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        found: dict[str, Example] = {}
        index = 0
        # A family has few distinct short problems: stop when fresh draws no longer bring new ones.
        while len(found) < count and index < 200 * (count + 10):
            example = self._example(seed, index)
            index += 1
            if split_of(normalise(example.question)) == split:
                found.setdefault(normalise(example.question), example)
        return list(found.values())

    def at_length(self, *lengths: int) -> GeneratedTask:
        return replace(self, lengths=lengths)

    def in_held_out_wording(self) -> GeneratedTask:
        return replace(self, held_out_wording=True)

    def length(self, example_id: str) -> int:
        """The number of steps that the problem was drawn with; for a search task its depth."""
        return int(example_id.split("/")[3])

    def check(self, example: Example, completion: str) -> StepCheck:
        """Judges every written step: it must be the next gold step, or a statement that the question entails.

        The first answer line counts, and every line after it is a false step.
        """
        problem = self.problem(example.id)
        expected = [normalise_step(step) for step in problem.steps]
        entailed = {normalise_step(fact) for fact in problem.facts}
        trace, valid, reached = trace_of(completion), [], 0
        for step in map(normalise_step, trace.steps):
            if reached < len(expected) and step == expected[reached]:
                reached += 1
                valid.append(True)
            else:
                valid.append(step in entailed)
        return StepCheck(
            valid=(*valid, *(False for _ in trace.after)),
            complete=reached == len(expected),
            answered=trace.answer is not None,
            answer_right=same_answer(trace.answer, problem.answer),
        )

    def _example(self, seed: int, index: int) -> Example:
        rng = random.Random(f"{self.name}/{seed}/{index}")
        num_steps = rng.choice(self.lengths)
        wording = self.num_wordings - 1 if self.held_out_wording else rng.randrange(self.num_wordings - 1)
        return self.example(f"{self.name}/{seed}/{index}/{num_steps}/{wording}")


def draws_groups(task: Task, groups: Sequence[str]) -> bool:
    """Whether items of another seed would be of other groups: a generated task's are its templates, and no name is no group."""
    return not isinstance(task, GeneratedTask) and all(groups)


def normalise_step(step: str) -> str:
    """Case, spacing and closing punctuation do not matter; signs, digits and words do."""
    return " ".join(step.lower().replace(",", " , ").split()).rstrip(" .")


def different(rng: random.Random, options: Sequence[str], right: str, count: int = 3) -> tuple[str, ...]:
    """`count` distinct options other than the right one, in random order (fewer if there are no more)."""
    rest = [option for option in dict.fromkeys(options) if option != right]
    return tuple(rng.sample(rest, min(count, len(rest))))


def near_numbers(rng: random.Random, right: int, count: int = 3) -> tuple[str, ...]:
    near = [right + delta for delta in (-10, -3, -2, -1, 1, 2, 3, 10) if right + delta >= 0]
    return tuple(str(number) for number in rng.sample(near, count))
