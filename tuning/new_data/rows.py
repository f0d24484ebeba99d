"""New rows beside what a domain has: rows that break a rule, that are there already, or that may not be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evaluation.duplicates import SaidBefore, blocked, common_pairs
from evaluation.errors import DataError, WrongRow
from evaluation.overlap import Fingerprints
from evaluation.task import Example, Task, split_of
from evaluation.tasks.faulty_rows import several_faulty
from evaluation.tasks.rows import read_file
from evaluation.tasks.user_data import TaskSpec, check_columns, example_of
from tuning.new_data.tasks import Known
from tuning.rounds import is_endless

Why = Literal[
    "twice in the file",
    "nearly twice in the file",
    "there already",
    "nearly there already",
    "another answer to the same question",
    "repeats a held-out row",
    "repeats a row that was fitted",
]
CONTRADICTS: Why = "another answer to the same question"
KNOWN: tuple[Why, ...] = ("there already", "nearly there already")
_LOOKED_AT = 5000  # items of a held-out split, at most


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used: where it stands, why, and the id of the row that it repeats."""

    line: int
    why: Why
    of: str


@dataclass(frozen=True)
class NewRows:
    """`rows` are used; their ids begin with the file's digest."""

    digest: str  # SHA-256 of the file
    num_read: int
    rows: tuple[Example, ...]
    lines: dict[str, int]  # by id
    left_out: tuple[LeftOut, ...]

    def count(self, *why: Why) -> int:
        return sum(one.why in why for one in self.left_out)

    def as_dict(self) -> dict[str, object]:
        reasons = dict.fromkeys(one.why for one in self.left_out)
        return {
            "sha256": self.digest,
            "read": self.num_read,
            "used": len(self.rows),
            "left_out": {why: self.count(why) for why in reasons},
            "rows_left_out": [{"line": one.line, "why": one.why, "of": one.of} for one in self.left_out],
        }


def file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def checked_rows(spec: TaskSpec, file: Path) -> tuple[dict[str, int], list[Example]]:
    """Every row of the file in the task's schema, with the line of each id. WrongRow names all lines that break a rule."""
    if spec.columns.choices is None:
        raise DataError(
            f"Whether there is anything to learn is read from options, but {spec.name!r} names no column of choices. Name one in "
            "its TOML, or fit the new rows with `graftline tune`."
        )
    rows, digest = read_file(file), file_sha256(file)
    check_columns(spec, str(file), rows)
    lines, examples, faults = dict[str, int](), list[Example](), list[str]()
    for row in rows:
        try:
            if not spec.keeps(row, str(file)):
                continue
            found = example_of(spec, str(file), row)
        except WrongRow as error:
            faults.append(str(error))
            continue
        if (text := _not_unicode(found)) is not None:
            faults.append(
                f"Text is Unicode, but line {row.line} of {str(file)!r} has half a character in {text[:40]!r}. Correct it."
            )
            continue
        named = replace(found, id=f"{digest[:8]}/{found.id}")
        if named.id in lines:
            faults.append(
                f"Ids must differ, but lines {lines[named.id]} and {row.line} of {str(file)!r} are both {found.id!r}. Rename one."
            )
            continue
        lines[named.id] = row.line
        examples.append(named)
    if faults:
        raise several_faulty(faults, len(rows))
    return lines, examples


def _not_unicode(row: Example) -> str | None:
    r"""A text of the row that no file can hold: JSON may write half of a pair of surrogates, as \ud83d. None: there is none."""
    texts = (row.id, row.question, row.answer, *(row.choices or ()), row.rationale or "", row.context or "", row.group)
    return next((text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)), None)


def sifted(known: Known, file: Path, fitted: Fingerprints, guarded: Sequence[Task] = ()) -> NewRows:
    """What of the file is new and may be used.

    `fitted` is what the champion was fitted on, `guarded` are the other tasks that something is measured on. A row that repeats
    an item of theirs, or of the domain's own held-out splits, is left out, whichever split it would come into itself; one that
    repeats what was fitted is left out where it would be measured on.
    """
    lines, examples = checked_rows(known.schema, file)
    rows = known.task.rows
    held = [row for row in rows if split_of(row.group) != "train"]
    for task in guarded:
        if not is_endless(task):  # of a generated family, an item that repeats a row is not drawn
            held.extend(item for split in ("search", "select", "gate") for item in task.examples(split, _LOOKED_AT))
    common = common_pairs([*rows, *examples])
    before, here = SaidBefore(rows, common), SaidBefore(common=common)
    stopped = blocked(examples, held, common)
    unfitted = [row for row in examples if split_of(row.group) != "train"]
    repeated = {repeat.held_out_id for repeat in fitted.repeats(unfitted)}
    used, left_out = dict[str, Example](), list[LeftOut]()
    for row in examples:
        why = _why(row, before, here, stopped, repeated)
        if why is None:
            used[row.id] = row
            here.add(row)
            continue
        left_out.append(LeftOut(lines[row.id], *why))
        if why[0] == CONTRADICTS and why[1] in used:  # which of the two is right is not known
            del used[why[1]]
            left_out.append(LeftOut(lines[why[1]], CONTRADICTS, row.id))
    return NewRows(file_sha256(file), len(examples), tuple(used.values()), lines, tuple(left_out))


def _why(
    row: Example, before: SaidBefore, here: SaidBefore, stopped: dict[str, Example], repeated: set[str]
) -> tuple[Why, str] | None:
    if (old := before.duplicate(row)) is not None:
        if not old.agrees:
            return CONTRADICTS, old.of.id
        return ("there already" if old.exact else "nearly there already"), old.of.id
    if (same := here.duplicate(row)) is not None:
        if not same.agrees:
            return CONTRADICTS, same.of.id
        return ("twice in the file" if same.exact else "nearly twice in the file"), same.of.id
    if row.id in stopped:
        return "repeats a held-out row", stopped[row.id].id
    if row.id in repeated:
        return "repeats a row that was fitted", ""
    return None
