"""`graftline continual`: the matrix of stages and columns from stored evaluations, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.continual import DENOMINATORS, Column, ContinualMatrix
from evaluation.errors import UnreadableFile

WORDS = ("task", "measure", "role", "unit")  # of a row, at least
MOST = 10**300  # an integer that no float holds is no reading
NUMBERS = ("n", "base", "adapted", "change", "low", "high")  # where one is not defined, None


def continual(files: Sequence[Path], as_json: bool) -> None:
    matrix = ContinualMatrix.of([_read(file) for file in files])
    if as_json:
        print(json.dumps(matrix.as_dict()))
        return
    console = Console(markup=False)
    console.print(_stages(matrix), soft_wrap=True, highlight=False)
    console.print(_scores(matrix))
    console.print(_transfer(matrix))
    console.print(_moves(matrix))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not _is_evaluation(found):
        raise UnreadableFile(
            "A stored evaluation is one JSON object with subject, backbone and rows, which name their items, but "
            f"{str(file)!r} is none. "
            "Write it with `graftline evaluate SUBJECT --domain TASK --json > FILE`."
        )
    whole: dict[str, Any] = found
    return whole


def _is_evaluation(found: object) -> bool:
    """Whether a file that was cut, edited, or written by another command can be read as one."""
    if not isinstance(found, dict) or not isinstance(rows := found.get("rows"), list):
        return False
    named = all(isinstance(found.get(name), str) for name in ("subject", "backbone"))
    return named and all(isinstance(row, dict) and _is_row(row) for row in rows)


def _is_row(row: dict[str, Any]) -> bool:
    told = row.get("summary") or {}
    return (
        _names_items(row.get("items"), row.get("n"))
        and all(isinstance(row.get(name), str) for name in WORDS)
        and all(name in row and _is_number(row[name]) for name in NUMBERS)
        and _is_number(row.get("chance"))
        and isinstance(told, dict)
        and all(map(_is_number, told.values()))
    )


def _names_items(items: object, num_measured: object) -> bool:
    """Stages are compared on the same items, which only their ids show."""
    ids = items.get("ids") if isinstance(items, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        return False
    return 0 < len(ids) == len(set(ids)) and isinstance(num_measured, int) and 0 <= num_measured <= len(ids)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= MOST)


def _stages(matrix: ContinualMatrix) -> str:
    """Their numbers stand in the tables: a name may be a path, and no table is read with its words cut."""
    return "\n".join(f"stage {number}: {name}" for number, name in enumerate(("the backbone", *matrix.stages)))


def _scores(matrix: ContinualMatrix) -> Table:
    made = Table(
        title="score after each stage; domains in the order of their fitting, then what was guarded", title_justify="left"
    )
    for heading in ("column", "unit"):
        made.add_column(heading, overflow="fold")
    for number in range(len(matrix.scores)):
        made.add_column(f"{number}", justify="right")
    for column, scores in zip((*matrix.domains, *matrix.retention), zip(*matrix.scores, strict=True), strict=True):
        made.add_row(column.task, column.unit, *(f"{score:.3f}" for score in scores))
    return made


def _transfer(matrix: ContinualMatrix) -> Table:
    made = Table(title=f"over the domains, T = {len(matrix.stages)}", title_justify="left")
    for heading in ("", "value", "mean over"):
        made.add_column(heading, overflow="fold")
    for name, value in asdict(matrix.transfer).items():
        made.add_row(name.replace("_", " "), _number(value, signed="transfer" in name), DENOMINATORS[name])
    return made


def _moves(matrix: ContinualMatrix) -> Table:
    made = Table(title="against the backbone, on the same items", title_justify="left")
    for heading in ("stage", "column", "change", "95 % interval", "lost", "won", "same answer", "share kept"):
        made.add_column(heading, overflow="fold")
    for stage in range(1, len(matrix.stages) + 1):
        for column in (*matrix.domains, *matrix.retention):
            made.add_row(str(stage), column.task, *_move(column, stage))
    return made


def _move(column: Column, stage: int) -> list[str]:
    cell = column.cells[stage - 1]
    return [
        _number(cell.change, signed=True),
        f"[{_number(cell.low, signed=True)}, {_number(cell.high, signed=True)}]",
        *(_number(value) for value in (cell.negative_flips, cell.positive_flips, cell.agreement, column.share_kept(stage))),
    ]


def _number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"
