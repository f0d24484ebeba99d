"""The tasks that a round fits and measures on: old and new rows under the domain's own name, each in the split that it has."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.whole_file import whole_directory, write_whole
from evaluation.errors import DataError
from evaluation.task import Example, split_of
from evaluation.tasks import TASKS, task_named
from evaluation.tasks.user_data import TaskSpec, UserTask

ALL, WITH_OLD, NEW_ALONE = "all", "with_old", "new_alone"
SCHEMA = "schema.json"  # the columns in which further rows come
_COLUMNS = ("id", "question", "answer", "choices", "rationale", "context", "group")


@dataclass(frozen=True)
class RoundTasks:
    """TOML files in one folder, with the same rows held out, so that whatever is fitted is measured alike."""

    directory: Path

    @property
    def all(self) -> Path:
        """Every row: what the domain is from now on."""
        return self.directory / f"{ALL}.toml"

    @property
    def with_old(self) -> Path:
        """Trains on the new rows and on as many old ones."""
        return self.directory / f"{WITH_OLD}.toml"

    @property
    def new_alone(self) -> Path:
        """Trains on the new rows alone."""
        return self.directory / f"{NEW_ALONE}.toml"


@dataclass(frozen=True)
class Known:
    """All rows that are known of a domain, also those that its last fit left out, and the columns in which new ones come."""

    task: UserTask
    schema: TaskSpec

    @classmethod
    def of(cls, domain: str) -> Known:
        """Of a recipe's domain, which may be a task that an earlier round wrote."""
        folder = Path(domain).parent
        if Path(domain).name in (f"{WITH_OLD}.toml", f"{NEW_ALONE}.toml") and (folder / SCHEMA).is_file():
            task = _of_rows(str(RoundTasks(folder).all))
            return cls(task, TaskSpec.model_validate_json((folder / SCHEMA).read_text()))
        task = _of_rows(domain)
        return cls(task, task.spec)


def _of_rows(domain: str) -> UserTask:
    task = task_named(domain)
    if domain in TASKS:
        raise DataError(
            f"New rows are added to a domain of your own, but {domain!r} is built in: the name stands for the same rows in every "
            "registry, and gates and policies go by it. Describe the new rows by a TOML of their own, and fit them under a name "
            f'of their own with adapter.warm_start = "models:/NAME@champion": the gate protects {domain!r} there too, and '
            "`graftline continue` takes further rows in."
        )
    if not isinstance(task, UserTask):
        raise DataError(
            f"New rows come in the columns of the domain's own TOML file, but {domain!r} is no task of rows. Describe the domain "
            "by a TOML with a `file`, or fit the new rows as a domain of their own."
        )
    return task


def write_tasks(directory: Path, known: Known, new: Sequence[Example]) -> RoundTasks:
    """Writes the folder whole, or not at all; Overlap where a row that is held out repeats a training row."""
    task, rows = known.task, known.task.rows
    trains = [row for row in rows if split_of(row.group) == "train"]
    new_trains = [row for row in new if split_of(row.group) == "train"]
    held = [row for row in (*rows, *new) if split_of(row.group) != "train"]
    drawn = random.Random(f"{task.name}/replay/{len(rows)}").sample(trains, min(len(trains), len(new_trains)))
    with whole_directory(directory) as part:
        write_whole(part / SCHEMA, known.schema.model_dump_json())
        _write(part, task.spec, ALL, (*rows, *new))
        _write(part, task.spec, WITH_OLD, (*drawn, *new_trains, *held))
        _write(part, task.spec, NEW_ALONE, (*new_trains, *held))
        for name in (ALL, WITH_OLD, NEW_ALONE):
            task_named(str(part / f"{name}.toml"))
    return RoundTasks(directory)


def _write(directory: Path, spec: TaskSpec, name: str, rows: Iterable[Example]) -> None:
    rows = list(rows)
    lines = [json.dumps({column: getattr(row, column) for column in _COLUMNS}, ensure_ascii=False) for row in rows]
    write_whole(directory / f"{name}.jsonl", "\n".join(lines) + "\n")
    named = [column for column in _COLUMNS if any(getattr(row, column) is not None for row in rows)]
    toml = [
        f"name = {json.dumps(spec.name)}",
        f'file = "{name}.jsonl"',
        f"list_choices = {json.dumps(spec.list_choices)}",
        "[columns]",
        *(f'{column} = "{column}"' for column in named),
    ]
    write_whole(directory / f"{name}.toml", "\n".join(toml) + "\n")
