"""A user's own task: a TOML file that names the data, and which of its columns is what."""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from evaluation.errors import (
    AnswerNotAmongChoices,
    DuplicateId,
    EmptySplit,
    MissingColumn,
    OneClassAnswers,
    UnreadableFile,
    WrongRow,
)
from evaluation.overlap import Fingerprints, check_overlap, words
from evaluation.task import SPLITS, Example, Split, split_of
from evaluation.tasks.faulty_rows import check_one_answer, refuse_faulty
from evaluation.tasks.large_rows import files_at, passing, passing_of_dataset
from evaluation.tasks.rows import Row, read_dataset, read_file
from evaluation.tasks.streamed import StreamedTask
from evaluation.tasks.task_file import broken_rule, refuse_built_in


class Columns(BaseModel):
    """Which column is what. `choices` is one column (a list, or a text cut at the separator) or several columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str
    choices: str | tuple[str, ...] | None = None
    rationale: str | None = None
    context: str | None = None
    group: str | None = None
    id: str | None = None

    @property
    def named(self) -> tuple[str, ...]:
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices or ()
        single = (self.question, self.answer, self.rationale, self.context, self.group, self.id)
        return tuple(dict.fromkeys(name for name in (*single, *choices) if name is not None))


class TaskSpec(BaseModel):
    """What the TOML file says: a name, a source (`file`, or `dataset` with its revision and split), and the columns.

    `where` keeps the rows whose columns hold one of the named texts: one task out of a file of several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    file: str | tuple[str, ...] | None = None  # relative to the TOML file; several are read as one
    stream: bool = False  # the data may be larger than memory: it is read as it passes, and `file` may be a folder
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    dataset_split: str = "train"
    separator: str = "|"
    list_choices: bool = True  # the prompt lists them; false: they are only scored
    answers: Literal["text", "letter"] = "text"  # letter: the answer column says A for the first of the choices, B for the second
    where: dict[str, str | tuple[str, ...]] = {}
    held_out: bool = False  # no row is trained on: a task that is only protected
    repeats: Literal["refuse", "leave_out"] = "refuse"  # held-out rows that repeat a training row
    guard: Literal["likelihood"] | None = None  # of a protected task: by its gold chains, and not by what is written
    columns: Columns

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.file is None) == (self.dataset is None):
            given = "both" if self.file is not None else "neither"
            raise ValueError(f"A task reads from `file` or from `dataset`, exactly one of them; {given} is given.")
        if self.file == ():
            raise ValueError("`file` names one file or several, but got none.")
        return self

    @model_validator(mode="after")
    def _columns_are_there(self) -> TaskSpec:
        if self.answers == "letter" and self.columns.choices is None:
            raise ValueError('answers = "letter" is the place of a choice, but [columns] names no choices.')
        if self.stream and self.repeats == "leave_out":
            raise ValueError('repeats = "leave_out" needs all rows at once, but the task streams. Leave out one of them.')
        if self.guard == "likelihood" and self.columns.rationale is None:
            raise ValueError('guard = "likelihood" reads the gold chain, but [columns] names no rationale.')
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if isinstance(self.file, str) else self.file or ()

    def told(self) -> dict[str, JsonValue]:
        """What the file says, for a record; what is not asked for is left out, as of tasks before there was such a key."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude_none=True)
        unasked: dict[str, JsonValue] = {"stream": False, "answers": "text", "where": {}, "held_out": False, "repeats": "refuse"}
        return {name: value for name, value in values.items() if name not in unasked or value != unasked[name]}

    def keeps(self, row: Row, source: str) -> bool:
        """Whether the row is one of those that `where` asks for. WrongRow for a list or an object in such a column."""
        asked = {column: (texts,) if isinstance(texts, str) else texts for column, texts in self.where.items()}
        return all(row.text(column, source) in texts for column, texts in asked.items())


@dataclass(frozen=True)
class UserTask:
    """Rows that were checked one by one, as examples in four splits."""

    spec: TaskSpec
    rows: tuple[Example, ...]
    data_sha256: str | None  # of the data file; None for a dataset, which has its revision

    @property
    def name(self) -> str:
        return self.spec.name

    @cached_property
    def by_split(self) -> dict[Split, tuple[Example, ...]]:
        found = [(split_of(row.group, self.spec.held_out), row) for row in self.rows]
        return {split: tuple(row for of, row in found if of == split) for split in SPLITS}

    @property
    def has_chains(self) -> bool:
        """Whether every row has a rationale, so that a chain can be read of any."""
        return all(row.steps for row in self.rows)

    @property
    def guard(self) -> Literal["likelihood"] | None:
        return self.spec.guard

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        rows = list(self.by_split[split])
        random.Random(f"{self.name}/{split}/{seed}").shuffle(rows)
        return rows[:count]


def load_task(path: str | Path) -> UserTask | StreamedTask:
    """The task that a TOML file describes, with every row checked. Raises a `DataError` that says what to correct.

    One that streams checks each row as it passes, and what it draws when it is asked for examples.

    A row belongs to a split by the hash of its group: the named column, or else the normalised context and question.
    Rows of different groups that say the same across the border of `train` are refused (`evaluation.overlap`), or left out of
    what is held out where the file says so.
    """
    path = Path(path)
    spec = read_spec(path)
    refuse_built_in(path, spec.name)
    if spec.stream:
        return _streamed(spec, path)
    if spec.dataset is None:
        files = [path.parent / file for file in spec.files]
        examples = [example for file in files for example in _examples(spec, str(file), read_file(file), _of(file, files))]
        source, digest = ", ".join(map(str, files)), hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    else:
        source, digest = spec.dataset, None
        examples = _examples(spec, source, read_dataset(spec.dataset, spec.subset, spec.revision, spec.dataset_split))
    task = UserTask(spec, _checked(examples, source, spec.held_out), digest)
    held = [row for split in SPLITS[1:] for row in task.by_split[split]]
    if spec.repeats == "leave_out":
        again = {repeat.held_out_id for repeat in Fingerprints.of(task.by_split["train"]).repeats(held)}
        task = UserTask(spec, _checked([row for row in examples if row.id not in again], source, spec.held_out), digest)
    else:
        check_overlap(task.by_split["train"], held)
    check_one_answer(task.rows, source)
    return task


def _of(file: Path, files: Sequence[Path]) -> str:
    """What tells the rows of one of several files apart, which are numbered from 1 in each."""
    return f"{file.name}/" if len(files) > 1 else ""


def _streamed(spec: TaskSpec, path: Path) -> StreamedTask:
    files = tuple(file for named in spec.files for file in files_at(path.parent / named))
    known = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    source = spec.dataset or ", ".join(str(path.parent / file) for file in spec.files)

    def read() -> Iterator[Example]:
        if spec.dataset is not None:
            rows = passing_of_dataset(spec.dataset, spec.subset, spec.revision, spec.dataset_split)
        else:
            rows = passing(files)
        for row in rows:
            if row.line == 1:
                _check_columns(spec, source, row.values)
            if spec.keeps(row, source):
                yield example_of(spec, source, row)

    identity = hashlib.sha256(json.dumps([spec.model_dump(mode="json"), known]).encode()).hexdigest()
    return StreamedTask(spec.name, source, identity, read, spec.told(), files, spec.guard, spec.held_out)


def read_spec(path: Path) -> TaskSpec:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UnreadableFile(
            f"A task is described by a TOML file, but {str(path)!r} cannot be read: {error}. Correct the path or the file."
        ) from error
    try:
        return TaskSpec.model_validate(values)
    except ValidationError as error:
        of_columns = error.errors(include_url=False)[0]["loc"][:1] == ("columns",)
        raise broken_rule(path, error, (Columns if of_columns else TaskSpec).model_fields) from error


def _examples(spec: TaskSpec, source: str, rows: Sequence[Row], of: str = "") -> list[Example]:
    check_columns(spec, source, rows)
    found, faults = list[Example](), list[WrongRow]()
    for row in rows:
        try:
            if spec.keeps(row, source):
                found.append(example_of(spec, source, row, of))
        except WrongRow as error:
            faults.append(error)
    refuse_faulty(faults, len(rows))
    return found


def check_columns(spec: TaskSpec, source: str, rows: Sequence[Row]) -> None:
    """Raises for no rows, and for rows without a column that the task names."""
    if not rows:
        raise EmptySplit(f"A task needs rows, but {source!r} has none. Name a file that has some.")
    _check_columns(spec, source, dict.fromkeys(name for row in rows for name in row.values))


def _check_columns(spec: TaskSpec, source: str, have: Mapping[str, object]) -> None:
    for column in dict.fromkeys((*spec.columns.named, *spec.where)):
        if column not in have:
            raise MissingColumn(
                f"Every column that the task names must be in the data, but {source!r} has no {column!r}. "
                f"It has {', '.join(have)}: correct [columns] {'or [where] ' if spec.where else ''}in the task file."
            )


def example_of(spec: TaskSpec, source: str, row: Row, of: str = "") -> Example:
    """One row as an example; WrongRow, with its line, where it breaks a rule. `of` goes before the line in an id of its own."""
    columns, where = spec.columns, f"line {row.line} of {source!r}"
    question, answer = _required(row, columns.question, source), _required(row, columns.answer, source)
    choices = _choices(spec, row, source)
    if spec.answers == "letter" and choices is not None:
        answer = _at_letter(answer, choices, where)
    if choices is not None and answer not in choices:
        raise AnswerNotAmongChoices(
            f"The answer must be one of the choices, but {where} has the answer {answer!r} and the choices {list(choices)!r}. "
            "Correct the row, or name no choices column."
        )
    context = row.text(columns.context, source)
    group = _required(row, columns.group, source) if columns.group else " ".join(words(f"{context or ''} {question}"))
    if not group:
        raise WrongRow(f"A question needs letters or digits, but {where} has {question!r}. Correct or remove the row.")
    rationale = row.text(columns.rationale, source)
    if spec.guard and columns.rationale:
        rationale = _required(row, columns.rationale, source)
    return Example(
        id=_required(row, columns.id, source) if columns.id else f"{spec.name}/{of}{row.line}",
        question=question,
        answer=answer,
        choices=choices,
        rationale=rationale,
        context=context,
        group=group,
        listed=spec.list_choices,
    )


def _required(row: Row, column: str, source: str) -> str:
    text = row.text(column, source)
    if text is None:
        raise WrongRow(
            f"Column {column!r} must have a value in every row, but line {row.line} of {source!r} has none. Fill it in, or "
            "remove the row."
        )
    return text


def _at_letter(letter: str, choices: Sequence[str], where: str) -> str:
    """The text of the choice that the letter names."""
    place = ord(letter.upper()) - ord("A") if len(letter) == 1 else -1
    if not 0 <= place < len(choices):
        raise AnswerNotAmongChoices(
            f"The answer must be the letter of one of the choices, but {where} has the answer {letter!r} and {len(choices)} "
            "choices. Correct the row, or leave out `answers`."
        )
    return choices[place]


def _choices(spec: TaskSpec, row: Row, source: str) -> tuple[str, ...] | None:
    named = spec.columns.choices
    if named is None:
        return None
    if isinstance(named, str):
        value = row.values.get(named)
        if isinstance(value, (list, tuple)):
            parts = [row.as_text(part, named, source) for part in value]
        else:
            parts = (row.text(named, source) or "").split(spec.separator)
    else:
        parts = [row.text(column, source) or "" for column in named]
    choices = tuple(text for text in (part.strip() for part in parts) if text)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise WrongRow(
            f"Choices must be two or more different texts, but line {row.line} of {source!r} has {list(choices)!r}. Correct "
            + (f"the row, or the separator, which is {spec.separator!r}." if isinstance(named, str) else "the row.")
        )
    return choices


def _checked(rows: list[Example], source: str, held_out: bool) -> tuple[Example, ...]:
    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.id in seen:
            raise DuplicateId(
                f"Ids must differ, but rows {seen[row.id] + 1} and {index + 1} of {source!r} are both {row.id!r}. "
                "Rename one, or name no id column."
            )
        seen[row.id] = index
    if len({row.answer.casefold() for row in rows}) == 1:
        raise OneClassAnswers(
            f"A task needs at least two different answers, but all {len(rows)} rows of {source!r} have {rows[0].answer!r}. "
            "Add rows with another answer, or correct the answer column."
        )
    groups: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for row in rows:
        groups[split_of(row.group, held_out)].add(row.group)
    wanted = SPLITS[1:] if held_out else SPLITS
    empty = [split for split in wanted if not groups[split]]
    if empty:
        number = len({row.group for row in rows})
        raise EmptySplit(
            f"Each of {', '.join(wanted)} must get at least one group, but {' and '.join(empty)} got none of the {number} in "
            f"{source!r}. Add rows with other questions, or name a finer group column."
        )
    return tuple(rows)
