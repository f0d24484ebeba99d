"""Rows of data that is larger than memory, one after the other, through the optional package `datasets`."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import MissingPackage, UnreadableFile
from evaluation.tasks.rows import Row

_KINDS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # as `datasets` calls them


def files_at(path: Path) -> list[Path]:
    """The file, or those of a folder by name, all of one kind. UnreadableFile where there are none or several kinds."""
    found = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
    kinds = {file.suffix.lower() for file in found}
    if len(kinds) != 1 or not kinds <= _KINDS.keys() or not all(file.is_file() for file in found):
        raise UnreadableFile(
            f"Data that streams is one file, or a folder of files of one kind, of {', '.join(_KINDS)}, but {str(path)!r} "
            + (
                f"holds {', '.join(sorted(kinds)) or 'nothing'}"
                if path.is_dir()
                else "is none"
                if path.is_file()
                else "is not there"
            )
            + ". Correct `file` (relative to the task file), or convert the data."
        )
    return found


def passing(files: Sequence[Path]) -> Iterator[Row]:
    """The rows of all files; `line` is a row's place among them, from 1. What a table has is never held whole."""
    kind = _KINDS[files[0].suffix.lower()]
    options: dict[str, Any] = {"data_files": [str(file) for file in files], "split": "train", "streaming": True}
    if kind == "csv":  # cells as they are written: 007 is no 7, and NA no gap
        options |= {"features": _texts(files[0]), "keep_default_na": False}
    yield from _rows(kind, options, str(files[0] if len(files) == 1 else files[0].parent))


def passing_of_dataset(name: str, subset: str | None, revision: str | None, split: str) -> Iterator[Row]:
    """The same of a Hugging Face dataset."""
    yield from _rows(name, {"name": subset, "revision": revision, "split": split, "streaming": True}, name)


def _rows(path: str, options: dict[str, Any], source: str) -> Iterator[Row]:
    datasets = _datasets(source)
    try:
        for place, values in enumerate(datasets.load_dataset(path, **options), start=1):
            yield Row(place, dict(values))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        spelt = "in UTF-8, " if path in ("csv", "json") else ""  # a Parquet file has an encoding of its own
        raise UnreadableFile(
            f"Data that streams must be readable to its end, but {source!r} is not: {type(error).__name__}: {error}. Write it "
            f"again, {spelt}each column of one type."
        ) from error


def _texts(file: Path) -> Any:
    """Every column of the header as text."""
    datasets = _datasets(str(file))
    with file.open(encoding="utf-8-sig", newline="") as opened:
        header = next(csv.reader(opened), [])
    return datasets.Features({name: datasets.Value("string") for name in header})


def _datasets(source: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise MissingPackage(
            f"Data that streams needs the package `datasets`, which is not installed, to read {source!r}. Install it with "
            "`pip install datasets`, or leave out `stream`."
        )
    import datasets

    return datasets
