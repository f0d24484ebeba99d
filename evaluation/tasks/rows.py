"""Rows of a user's file, with the line each one stands on: JSONL, CSV, Parquet, or a Hugging Face dataset."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import MissingPackage, UnreadableFile, WrongRow

_NO_TEXT = (Mapping, list, tuple, set, bytes, bytearray)
_SHOWN = 80  # characters of a value in an error
_FIELD = 2**31 - 1  # characters of a cell: the csv module's own limit of 131,072 is for files that are not trusted


@dataclass(frozen=True)
class Row:
    """One row. `line` counts from 1: the line of a text file, the row of a table."""

    line: int
    values: Mapping[str, object]

    def text(self, column: str | None, source: str) -> str | None:
        """The value as stripped text; None when there is no such column, or nothing in it.

        WrongRow, with line and column, where it is a list, an object or bytes: those are no text.
        """
        value = self.values.get(column) if column is not None else None
        if column is None or value is None:
            return None
        return self.as_text(value, column, source) or None

    def as_text(self, value: object, column: str, source: str) -> str:
        """The same of a value in a list of the column."""
        if isinstance(value, _NO_TEXT):
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
            raise WrongRow(
                f"A column that is read as text holds a text, a number or nothing, but {column!r} in line {self.line} of "
                f"{source!r} holds {shown}. Write the value as a text, or name another column."
            )
        return "" if value is None else str(value).strip()


def read_file(path: Path) -> list[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UnreadableFile(
            f"Data comes as {', '.join(_READERS)}, but {str(path)!r} ends in {path.suffix!r}. Convert it, or correct its name."
        )
    if not path.is_file():
        raise UnreadableFile(f"The data file must exist, but {str(path)!r} does not. Correct `file` (relative to the task file).")
    try:
        return reader(path)
    except (WrongRow, UnreadableFile):
        raise
    except (OSError, ValueError) as error:
        way_out = _WAYS_OUT[path.suffix.lower()]
        why = _undecoded(path) if isinstance(error, UnicodeDecodeError) and way_out == _AGAIN else error
        raise UnreadableFile(
            f"The data file must be readable as {path.suffix}, but {str(path)!r} is not: {why}. {way_out}"
        ) from error


def read_dataset(name: str, subset: str | None, revision: str | None, split: str) -> list[Row]:
    """Every row of one split of a Hugging Face dataset, through the optional package `datasets`."""
    if importlib.util.find_spec("datasets") is None:
        raise MissingPackage(
            f"A Hugging Face dataset needs the package `datasets`, which is not installed, to read {name!r}. "
            "Install it with `pip install datasets`, or name a `file`."
        )
    import datasets

    try:
        table = datasets.load_dataset(name, subset, revision=revision, split=split)
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"The dataset must be on the hub or in the cache, but {name!r} (split {split!r}) cannot be loaded: {error}. "
            "Correct `dataset`, `subset` and `dataset_split`."
        ) from error
    return [Row(index, dict(values)) for index, values in enumerate(table, start=1)]


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise WrongRow(
                f"Every line must be one JSON object, but line {number} of {str(path)!r} is not JSON: {error}. Correct the line."
            ) from error
        if not isinstance(values, dict):
            raise WrongRow(
                f"Every line must be one JSON object, but line {number} of {str(path)!r} holds {values!r}. Correct the line."
            )
        rows.append(Row(number, values))
    return rows


def _undecoded(path: Path) -> str:
    """The first line that is not UTF-8; a decoder's own position is that within what it read at one time."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"line {number} is not UTF-8 (byte 0x{line[error.start]:02x})"
    return "it is not UTF-8"


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_header(reader.fieldnames or (), path)
            return [_csv_row(reader, values, path) for values in reader]
        except csv.Error as error:
            raise UnreadableFile(
                "A CSV file closes every quote that it opens, and doubles a quote inside a cell, but the row that begins in line "
                f"{reader.line_num + 1} of {str(path)!r} does not: {error}. Correct its quotes."
            ) from error


def _check_header(names: Sequence[str], path: Path) -> None:
    if len(names) == 1 and (mark := next((mark for mark in ";\t" if mark in names[0]), None)):
        raise UnreadableFile(
            f"The cells of a CSV file are separated by commas, but the header of {str(path)!r} is {names[0]!r}, in one cell. "
            f"Write it again with commas in place of {mark!r}."
        )
    if again := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise UnreadableFile(
            f"Columns have different names, but the header of {str(path)!r} has {', '.join(map(repr, again))} more than once. "
            "Rename one, or leave it out."
        )


def _csv_row(reader: csv.DictReader[str], values: dict[str, str], path: Path) -> Row:
    if None in values or None in values.values():
        raise WrongRow(
            f"Every row must have the {len(reader.fieldnames or ())} cells of the header, but line {reader.line_num} of "
            f"{str(path)!r} has {'more' if None in values else 'fewer'}. Quote cells that hold a comma, or fill in what is "
            "missing."
        )
    return Row(reader.line_num, values)


def _read_parquet(path: Path) -> list[Row]:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPackage(
            f"A Parquet file needs the package `pyarrow`, which is not installed, to read {str(path)!r}. "
            "Install it with `pip install pyarrow`, or write the data as JSONL."
        )
    import pyarrow.parquet

    return [Row(index, values) for index, values in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)]


_AGAIN = "Write it again, in UTF-8."
_WAYS_OUT = {
    ".jsonl": _AGAIN,
    ".csv": _AGAIN,
    ".parquet": "Copy it again whole, or write it again (`DataFrame.to_parquet`, `datasets.Dataset.to_parquet`).",
}
_READERS: dict[str, Callable[[Path], list[Row]]] = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
