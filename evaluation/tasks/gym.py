"""Any dataset of reasoning-gym as a task: `gym:NAME` as it comes, or a TOML file that sets its options.

    name = "small-sums"
    gym = "chain_sum"
    [options]
    max_terms = 3

A question belongs to one split for ever, by its hash, and the splits draw from seeds that lie at least a million apart: item i+1
of seed s is item i of seed s+1. Items that come again are left out, so that n is what is distinct. Only the dataset's full score
is right: it gives shares of a point for wrong answers too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple, Protocol

from evaluation.errors import DataError, MissingPackage, OneClassAnswers, UnknownTask
from evaluation.overlap import words
from evaluation.task import SPLITS, Example, Split, first_answer, split_of

PREFIX, PACKAGE = "gym:", "reasoning-gym"
STRIDE, SLOTS = 10**6, 4292  # a dataset may seed NumPy, which takes 32 bits; a multiple of four keeps the splits' slots apart
CHUNK = 200  # items of one dataset object: some make all of theirs at once
PILOT = 60  # items that tell what kind of answers there are, and identify the dataset's state
FEW_ANSWERS = 4  # up to so many, each gets the same share of the items
DRY = 500  # known questions in a row before a dataset counts as exhausted

# Seen with two values of PYTHONHASHSEED: sets are iterated, or a draw has no seed.
_UNSTABLE = frozenset(
    (
        "codeio",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    )
)
# Their scorers run what they are given as Python: what a model wrote is handed over in these alphabets only.
_ARITHMETIC, _GRID, _NOTHING = r"(?:[\d+\-/() ]|\*(?!\*)){1,80}", r"[\dQ_\s]{1,2000}", r"(?!)"
_EVALUATED = {
    "binary_matrix": _GRID,
    "countdown": _ARITHMETIC,
    "n_queens": _GRID,
    "puzzle24": _ARITHMETIC,
    "simple_integration": _NOTHING,
    "spiral_matrix": _GRID,
    "string_insertion": r"[A-Z]{1,200}",
}

_WHOLE = re.compile(r"0|-?[1-9]\d{0,11}")

Options = tuple[tuple[str, object], ...]


class Entry(NamedTuple):
    question: str
    answer: str | None


class _Dataset(Protocol):
    def __getitem__(self, index: int) -> dict[str, object]: ...

    def score_answer(self, answer: str, entry: dict[str, object]) -> float: ...


@dataclass(frozen=True)
class GymTask:
    """A dataset with its options. Where there are at most four answers, they are the choices, and as frequent as each other.

    Whole numbers get three near misses as choices, which are only scored. An item is a cluster of its own: a dataset does not say
    which of its items share a template.
    """

    name: str
    dataset: str
    options: Options = ()

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        """Distinct questions; fewer than `count` where no more are found, or where one of few answers runs out."""
        if count < 1:
            return []
        kinds = self.answers or ("",)
        quota = -(-count // len(kinds))
        found: dict[str, list[Example]] = {kind: [] for kind in kinds}
        slot = 1 + (len(SPLITS) * seed + SPLITS.index(split)) % SLOTS
        for index, entry, key in self._fresh(slot, limit=200 * (count + 10)):
            kind = entry.answer or "" if self.answers else ""
            if split_of(key) == split and self._is_usable(entry.answer) and kind in found and len(found[kind]) < quota:
                found[kind].append(self._example(slot, index, entry, key))
                if all(len(taken) == quota for taken in found.values()):
                    break
        fewest = min(map(len, found.values()))
        return [example for row in zip(*(taken[:fewest] for taken in found.values()), strict=True) for example in row][:count]

    def is_right(self, example: Example, completion: str) -> bool:
        """Whether the dataset gives the first answer its full score. An answer may take as many lines as the gold one."""
        given = first_answer(completion, lines=example.answer.count("\n") + 1)
        if given is None:
            return False
        if given == example.answer.strip():
            return True
        allowed = _EVALUATED.get(self.dataset)
        if allowed is not None and not re.fullmatch(allowed, given):
            return False
        _, slot, index = example.id.rsplit("/", 2)
        source, entry = self._entry(int(slot), int(index))
        try:
            return source.score_answer(given, entry) == 1.0
        except Exception:  # its own reading of a text that it cannot read
            return False

    @cached_property
    def pilot(self) -> tuple[Entry, ...]:
        """The first items of a seed that no split draws from."""
        return tuple(_read(self._entry(0, index)[1]) for index in range(PILOT))

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """All that occur, where they are few; empty otherwise."""
        found = sorted({entry.answer for entry in self.pilot if entry.answer})
        return tuple(found) if len(found) <= FEW_ANSWERS else ()

    @cached_property
    def has_choices(self) -> bool:
        return bool(self.answers) or self._is_whole

    @cached_property
    def _is_whole(self) -> bool:
        return all(entry.answer is not None and _WHOLE.fullmatch(entry.answer) for entry in self.pilot)

    def _is_usable(self, answer: str | None) -> bool:
        return bool(answer) and (not self._is_whole or _WHOLE.fullmatch(answer or "") is not None)

    @cached_property
    def majority(self) -> float:
        """The share of the most frequent answer in the pilot, before any balancing."""
        return max(Counter(entry.answer for entry in self.pilot).values()) / PILOT

    @property
    def digest(self) -> str:
        """SHA-256 over the rendered pilot: another version of the package that makes other items has another."""
        return hashlib.sha256(repr([tuple(entry) for entry in self.pilot]).encode()).hexdigest()

    @cached_property
    def _by_words(self) -> bool:
        """Whether the words tell the questions apart; pictures made of signs are told apart by every sign."""
        asked = {entry.question for entry in self.pilot}
        return len({" ".join(words(question)) for question in asked}) > 0.9 * len(asked)

    def _fresh(self, slot: int, limit: int) -> Iterator[tuple[int, Entry, str]]:
        seen: set[str] = set()
        dry = 0
        for index in range(limit):
            entry = _read(self._entry(slot, index)[1])
            text = " ".join(words(entry.question)) if self._by_words else entry.question
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            dry = dry + 1 if key in seen else 0
            if dry == DRY:
                return
            if not dry:
                seen.add(key)
                yield index, entry, key

    def _entry(self, slot: int, index: int) -> tuple[_Dataset, dict[str, object]]:
        source = _created(self.dataset, self.options, slot * STRIDE + index // CHUNK * CHUNK)
        return source, source[index % CHUNK]

    def _example(self, slot: int, index: int, entry: Entry, key: str) -> Example:
        assert entry.answer is not None  # chosen so
        example_id = f"{self.name}/{slot}/{index}"
        choices = self.answers or (_near(random.Random(example_id), int(entry.answer)) if self._is_whole else None)
        return Example(example_id, entry.question, entry.answer, choices, group=key, listed=False)


@cache
def load_gym(dataset: str, options: Options = (), name: str | None = None) -> GymTask:
    """The task behind a dataset's name, looked at before it is used. Raises a `DataError` that says what is wrong with it."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingPackage(
            f"A gym: task needs the package {PACKAGE}, which is not installed, to make {dataset!r}. "
            "Install it with `pip install 'graftline[gym]'`."
        )
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise UnknownTask(f"{PACKAGE} has no dataset {dataset!r}. It has {', '.join(sorted(DATASETS))}.")
    if dataset in _UNSTABLE:
        raise DataError(
            f"The items of a task must be the same in every process, but those of {dataset!r} are not. Choose another dataset."
        )
    task = GymTask(name or PREFIX + dataset, dataset, options)
    try:
        pilot = task.pilot
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(
            f"{PACKAGE} must be able to make {dataset!r} with the options {dict(options)!r}, but refuses: {error}. "
            "Correct [options] in a task file."
        ) from error
    if any(entry.answer is None for entry in pilot):
        raise DataError(
            f"Every item needs a gold answer, but {dataset!r} has items without one, which only a scorer of its own can judge. "
            "Choose another dataset."
        )
    if task.majority == 1.0:
        raise OneClassAnswers(
            f"A task needs at least two different answers, but all {PILOT} items of {dataset!r} with {dict(options)!r} "
            f"have {pilot[0].answer!r}. Change [options]."
        )
    return task


@lru_cache(maxsize=64)
def _created(dataset: str, options: Options, seed: int) -> _Dataset:
    import reasoning_gym

    created: _Dataset = reasoning_gym.create_dataset(dataset, **{"size": CHUNK, **dict(options), "seed": seed})
    return created


def _read(entry: dict[str, object]) -> Entry:
    answer = entry["answer"]
    return Entry(str(entry["question"]), None if answer is None else str(answer))


def _near(rng: random.Random, right: int) -> tuple[str, ...]:
    """The number among three others of its sign, in random order."""
    near = [right + delta for delta in (-10, -3, -2, -1, 1, 2, 3, 10) if (right + delta < 0) == (right < 0)]
    options = [str(number) for number in (right, *rng.sample(near, 3))]
    return tuple(rng.sample(options, len(options)))
