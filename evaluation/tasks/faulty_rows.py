"""What is wrong with the rows of a file: told of all of them at once, so that they are corrected once."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.errors import ContradictoryAnswers, WrongRow
from evaluation.task import Example

MAX_FAULTS = 20  # rows that one message names


def refuse_faulty(faults: Sequence[WrongRow], num_rows: int) -> None:
    """The fault itself where there is one; of several a WrongRow that names the first, and how many there are."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise several_faulty([str(fault) for fault in faults], num_rows, most=5)


def several_faulty(faults: Sequence[str], num_rows: int, most: int = MAX_FAULTS) -> WrongRow:
    """An error of all of them."""
    return WrongRow(f"{len(faults)} of {num_rows} rows cannot be used. {_listed(faults, most)}")


def check_one_answer(rows: Sequence[Example], source: str) -> None:
    """ContradictoryAnswers where the same context, question and options come twice with different answers."""
    first = dict[tuple[str | None, str, frozenset[str]], Example]()
    faults = dict[str, str]()
    for row in rows:
        before = first.setdefault((row.context, row.question, frozenset(row.choices or ())), row)
        if before.answer != row.answer:
            told = f"{before.answer!r} in {before.id} and {row.answer!r} in {row.id} to {row.question[:80]!r}."
            faults.setdefault(before.id, told)
    if faults:
        raise ContradictoryAnswers(
            f"A question has one right answer, but {len(faults)} of {source!r} have several: "
            f"{_listed(list(faults.values()), most=5)} Correct the answers, or remove those rows."
        )


def _listed(faults: Sequence[str], most: int) -> str:
    more = f" And {len(faults) - most} more." if len(faults) > most else ""
    return " ".join(faults[:most]) + more
