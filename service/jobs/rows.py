"""Training rows in an uploaded file: `messages` as OpenAI has them, or columns of one's own; checked and turned into a task."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from adapters.whole_file import whole_directory, write_whole
from service.errors import ApiError
from service.shortened import shortened

TASK, CHOICES = "task.toml", "choices"
MAX_LINE_BYTES = 2**20
MAX_CLASSES = 64
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_COLUMNS = ("question", "answer", "choices", "rationale", "context", "group", "id")
_WANTED = 'a row is {"messages": [...]} that ends with the assistant\'s, or has the columns question and answer'


def check_rows(file: Path, filename: str) -> int:
    """How many rows there are. ApiError names the line of the first one that cannot be a training row."""
    count, first = 0, ""
    for number, row in rows_of(file, filename):
        kind = _kind(number, row)
        first = first or kind
        if kind != first:
            raise _wrong(number, f"all rows are of one kind, but this one has {kind} and those before it have {first}")
        count += 1
    if not count:
        raise ApiError(400, f"A file of training data has rows, but {filename!r} has none.", "invalid_file", "file")
    return count


def rows_of(file: Path, filename: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Every row with its line, counted from 1."""
    return _jsonl(file) if filename.lower().endswith(".jsonl") else _csv(file)


def write_task(
    file: Path, filename: str, directory: Path, name: str, columns: Mapping[str, str | tuple[str, ...]] | None, separator: str
) -> Path:
    """A task file over the rows, in a folder that is named by all of this: the same data makes the same task."""
    # A Bento, which starts no jobs, holds no tasks.
    from evaluation.errors import DataError
    from evaluation.tasks.user_data import Columns, load_task

    lines, rows = zip(*rows_of(file, filename), strict=True)
    if "messages" in rows[0]:
        rows = tuple(_of_messages(row) for row in rows)
        named = {"question": "question", "answer": "answer", "context": "context"}
    else:
        named = {key: key for key in _COLUMNS if any(key in row for row in rows)}
    try:
        chosen = Columns.model_validate(dict(columns) if columns else named).model_dump(exclude_none=True)
    except ValidationError as error:
        found = shortened(list(rows[0]), 200)
        rule = f"{_WANTED[0].upper()}{_WANTED[1:]}; `columns` names others, each as one of {', '.join(_COLUMNS)}"
        message = f"{rule}. The first row has {found}."
        raise ApiError(400, message, "invalid_training_data", "columns") from error
    if is_closed := "choices" not in chosen:
        # Not listed in the prompt, which stays as it was sent: they are what an answer is scored among.
        rows, chosen["choices"] = _with_choices(rows, str(chosen["answer"])), CHOICES
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(json.dumps([name, chosen, separator, data]).encode()).hexdigest()[:20]
    place = directory / digest
    if not place.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        with whole_directory(place) as part:
            write_whole(part / "rows.jsonl", data)
            # A JSON string, number or list of strings is TOML as well.
            listed = "".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items())
            told = {"name": name, "file": "rows.jsonl", "separator": separator, "list_choices": not is_closed}
            head = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
            write_whole(part / TASK, f"{head}\n[columns]\n{listed}")
            try:
                load_task(part / TASK)
            except DataError as error:
                said_so = re.sub(r"line (\d+) of", lambda said: f"line {lines[int(said[1]) - 1]} of", str(error))
                said_so = said_so.replace(str(part / "rows.jsonl"), filename).replace(str(part / TASK), "columns")
                raise ApiError(400, said_so, "invalid_training_data", "training_file") from error
    return place / TASK


def _with_choices(rows: Sequence[Mapping[str, object]], answer: str) -> tuple[Mapping[str, object], ...]:
    """Rows whose answers are of a small set, which are then the choices of each."""
    answers = sorted({str(row.get(answer, "")).strip() for row in rows} - {""})
    if not 2 <= len(answers) <= MAX_CLASSES:
        message = f"A sweep scores an answer among choices: a column of choices, or 2 to {MAX_CLASSES} different answers in all, "
        message += f"but this file has {len(answers)} and no such column. Add a column `choices`, as a list or separated by '|'."
        raise ApiError(400, message, "invalid_training_data", "training_file")
    return tuple({**row, CHOICES: answers} for row in rows)


def _jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(_bounded(lines), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise _wrong(number, f"a line is UTF-8, but this one is not ({error.reason})") from error
            except (ValueError, RecursionError) as error:
                raise _wrong(number, f"a line is one JSON object, but this one is not JSON ({_reason(error)})") from error
            if _ESCAPED_SURROGATE.search(line) and _has_half_a_character(row):
                raise _wrong(number, "a text is made of whole characters, but one here has half a surrogate pair")
            if not isinstance(row, dict):
                raise _wrong(number, f"a line is one JSON object, but this one holds a {type(row).__name__}")
            yield number, row


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has thousands of digits"


def _has_half_a_character(row: object) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _bounded(lines: BinaryIO) -> Iterator[bytes]:
    """A line that is too long is not read to its end."""
    for number in itertools.count(1):
        line = lines.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise _wrong(number, f"a line has at most {MAX_LINE_BYTES} bytes, but this one has more")
        if not line:
            return
        yield line


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    cells = len(reader.fieldnames or ())
                    raise _wrong(reader.line_num, f"a row has the {cells} cells of the header, but this one has not")
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise _wrong(reader.line_num + 1, f"a file is UTF-8, but this one is not ({error.reason})") from error
        except csv.Error as error:
            raise _wrong(reader.line_num, f"a row is CSV, but this one is not ({error})") from error


def _kind(number: int, row: Mapping[str, object]) -> str:
    """messages or columns; ApiError where the row is neither."""
    if "messages" not in row:
        if not row or all(value in (None, "") for value in row.values()):
            raise _wrong(number, f"{_WANTED}, but this one is empty")
        return "columns"
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise _wrong(number, "messages is a list of a question and its answer, but this one is not")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"].strip():
            raise _wrong(number, "every message has a role and a text as its content, but one here has not")
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            raise _wrong(number, f"a role is system, user or assistant, but one here is {message.get('role')!r}")
    if [message["role"] for message in messages[-2:]] != ["user", "assistant"]:
        raise _wrong(number, "the last message is the assistant's and the one before it the user's, but here they are not")
    return "messages"


def _of_messages(row: Mapping[str, object]) -> dict[str, object]:
    """The last question with its answer; what was said before is its context."""
    messages = row["messages"]
    assert isinstance(messages, list)
    *before, question, answer = messages
    context = "\n".join(str(message["content"]) for message in before)
    return {"question": question["content"], "answer": answer["content"], "context": context or None}


def _wrong(number: int, rule: str) -> ApiError:
    return ApiError(400, f"Line {number}: {rule}. Correct the line and upload the file again.", "invalid_file", "file")
