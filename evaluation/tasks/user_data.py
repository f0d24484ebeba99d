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

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from evaluation.errors import (
    AnswerNotAmongChoices,
    DataError,
    DuplicateId,
    EmptySplit,
    MissingColumn,
    OneClassAnswers,
    UnreadableFile,
    WrongRow,
)
from evaluation.overlap import check_overlap, words
from evaluation.task import SPLITS, Example, Split, split_of
from evaluation.tasks.large_rows import files_at, passing, passing_of_dataset
from evaluation.tasks.rows import Row, read_dataset, read_file
from evaluation.tasks.streamed import StreamedTask


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
    """What the TOML file says: a name, a source (`file`, or `dataset` with its revision and split), and the columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    file: str | None = None  # relative to the TOML file
    stream: bool = False  # the data may be larger than memory: it is read as it passes, and `file` may be a folder
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    dataset_split: str = "train"
    separator: str = "|"
    list_choices: bool = True  # the prompt lists them; false: they are only scored
    columns: Columns

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.file is None) == (self.dataset is None):
            given = "both" if self.file is not None else "neither"
            raise ValueError(f"A task reads from `file` or from `dataset`, exactly one of them; {given} is given.")
        return self

    def told(self) -> dict[str, JsonValue]:
        """What the file says, for a record; a task that does not stream is the one that it was before any did."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude_none=True)
        return values if self.stream else {name: value for name, value in values.items() if name != "stream"}


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
        return {split: tuple(row for row in self.rows if split_of(row.group) == split) for split in SPLITS}

    @property
    def digest(self) -> str:
        """SHA-256 over all rows, in order: what a run's record says it was fitted on."""
        return hashlib.sha256("\n".join(map(repr, self.rows)).encode()).hexdigest()

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        rows = list(self.by_split[split])
        random.Random(f"{self.name}/{split}/{seed}").shuffle(rows)
        return rows[:count]


def load_task(path: str | Path) -> UserTask | StreamedTask:
    """The task that a TOML file describes, with every row checked. Raises a `DataError` that says what to correct.

    One that streams checks each row as it passes, and what it draws when it is asked for examples.

    A row belongs to a split by the hash of its group: the named column, or else the normalised context and question.
    Rows of different groups that say the same across the border of `train` are refused (`evaluation.overlap`).
    """
    from evaluation.tasks import TASKS

    path = Path(path)
    spec = read_spec(path)
    if spec.name in TASKS:
        raise DataError(
            f"A task of your own has a name of its own, but {path} is called {spec.name!r}, which is built in. Rename it, for "
            f'example to "my-{spec.name}".'
        )
    if spec.stream:
        return _streamed(spec, path)
    if spec.file is not None:
        file = path.parent / spec.file
        source, rows = str(file), read_file(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    else:
        assert spec.dataset is not None  # the spec has exactly one source
        source, digest = spec.dataset, None
        rows = read_dataset(spec.dataset, spec.subset, spec.revision, spec.dataset_split)
    task = UserTask(spec, _checked(_examples(spec, source, rows), source), digest)
    check_overlap(task.by_split["train"], [row for split in SPLITS[1:] for row in task.by_split[split]])
    return task


def _streamed(spec: TaskSpec, path: Path) -> StreamedTask:
    files = () if spec.file is None else tuple(files_at(path.parent / spec.file))
    known = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    source = spec.dataset or str(path.parent / str(spec.file))

    def read() -> Iterator[Example]:
        if spec.dataset is not None:
            rows = passing_of_dataset(spec.dataset, spec.subset, spec.revision, spec.dataset_split)
        else:
            rows = passing(files)
        for row in rows:
            if row.line == 1:
                _check_columns(spec, source, row.values)
            yield example_of(spec, source, row)

    identity = hashlib.sha256(json.dumps([spec.model_dump(mode="json"), known]).encode()).hexdigest()
    return StreamedTask(spec.name, source, identity, read, spec.told(), files)


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
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        known = Columns.model_fields if first["loc"][:1] == ("columns",) else TaskSpec.model_fields
        raise DataError(
            f"The task file {str(path)!r} breaks a rule at {place}: {first['msg']} (given: {first.get('input')!r}). "
            f"Known keys there: {', '.join(known)}."
        ) from error


def _examples(spec: TaskSpec, source: str, rows: Sequence[Row]) -> list[Example]:
    check_columns(spec, source, rows)
    return [example_of(spec, source, row) for row in rows]


def check_columns(spec: TaskSpec, source: str, rows: Sequence[Row]) -> None:
    """Raises for no rows, and for rows without a column that the task names."""
    if not rows:
        raise EmptySplit(f"A task needs rows, but {source!r} has none. Name a file that has some.")
    _check_columns(spec, source, dict.fromkeys(name for row in rows for name in row.values))


def _check_columns(spec: TaskSpec, source: str, have: Mapping[str, object]) -> None:
    for column in spec.columns.named:
        if column not in have:
            raise MissingColumn(
                f"Every column that the task names must be in the data, but {source!r} has no {column!r}. "
                f"It has {', '.join(have)}: correct [columns] in the task file."
            )


def example_of(spec: TaskSpec, source: str, row: Row) -> Example:
    """One row as an example; WrongRow, with its line, where it breaks a rule."""
    columns, where = spec.columns, f"line {row.line} of {source!r}"
    question, answer = _required(row, columns.question, source), _required(row, columns.answer, source)
    choices = _choices(spec, row, source)
    if choices is not None and answer not in choices:
        raise AnswerNotAmongChoices(
            f"The answer must be one of the choices, but {where} has the answer {answer!r} and the choices {list(choices)!r}. "
            "Correct the row, or name no choices column."
        )
    context = row.text(columns.context, source)
    group = _required(row, columns.group, source) if columns.group else " ".join(words(f"{context or ''} {question}"))
    if not group:
        raise WrongRow(f"A question needs letters or digits, but {where} has {question!r}. Correct or remove the row.")
    return Example(
        id=_required(row, columns.id, source) if columns.id else f"{spec.name}/{row.line}",
        question=question,
        answer=answer,
        choices=choices,
        rationale=row.text(columns.rationale, source),
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


def _checked(rows: list[Example], source: str) -> tuple[Example, ...]:
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
        groups[split_of(row.group)].add(row.group)
    empty = [split for split in SPLITS if not groups[split]]
    if empty:
        number = len({row.group for row in rows})
        raise EmptySplit(
            f"Each of {', '.join(SPLITS)} must get at least one group, but {' and '.join(empty)} got none of the {number} in "
            f"{source!r}. Add rows with other questions, or name a finer group column."
        )
    return tuple(rows)
