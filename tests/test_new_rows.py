"""New rows of a domain: what is refused with its line, what is left out and why, and the tasks that come of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shelves import OPTIONS, parcels, write_jsonl, write_task

from evaluation.duplicates import SaidBefore, blocked
from evaluation.errors import DataError, MissingColumn, WrongRow
from evaluation.overlap import Fingerprints
from evaluation.task import Example, split_of
from evaluation.tasks import task_named
from tuning.new_data.rows import NewRows, checked_rows, sifted
from tuning.new_data.tasks import Known, RoundTasks, write_tasks

NOTHING = Fingerprints.of([])
LONG = (
    "A cargo of oranges left the old harbour before sunrise while the harbour master slept and nobody wrote "
    "down which of the four ships had taken it aboard"
)


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known.of(str(write_task(tmp_path)))


def new(known: Known, tmp_path: Path, rows: list[dict[str, Any]], fitted: Fingerprints = NOTHING) -> NewRows:
    return sifted(known, write_jsonl(tmp_path / "new.jsonl", rows), fitted)


def row(text: str, shelf: str = "east") -> dict[str, Any]:
    return {"text": text, "shelf": shelf, "shelves": OPTIONS}


def example(identity: str, question: str, answer: str = "east", context: str | None = None) -> Example:
    return Example(identity, question, answer, tuple(OPTIONS), None, context, identity)


def test_rows_of_another_kind_are_all_used_and_keep_their_lines(known: Known, tmp_path: Path) -> None:
    found = new(known, tmp_path, parcels(range(1000, 1010), ("green",)))
    assert len(found.rows) == found.num_read == 10 and not found.left_out
    assert sorted(found.lines.values()) == list(range(1, 11))


def test_every_row_that_breaks_a_rule_is_named_by_its_line_and_nothing_is_used(known: Known, tmp_path: Path) -> None:
    rows = parcels(range(1000, 1006), ("green",))
    rows[1]["shelf"], rows[4]["text"] = "nowhere", ""
    with pytest.raises(WrongRow, match=r"2 of 6 rows cannot be used.*line 2 .*'nowhere'.*line 5 "):
        new(known, tmp_path, rows)
    with pytest.raises(MissingColumn, match="no 'shelf'"):
        new(known, tmp_path, [{"text": "x", "shelves": OPTIONS}])
    (tmp_path / "cut.jsonl").write_text('{"text": "a", "shelf": "east"}\n{"text": ')
    with pytest.raises(WrongRow, match="line 2 of"):
        sifted(known, tmp_path / "cut.jsonl", NOTHING)


def test_half_a_character_is_named_by_its_line_before_anything_is_fitted(known: Known, tmp_path: Path) -> None:
    file = tmp_path / "half.jsonl"
    whole, half = (
        f'{{"text": "parcel 9 {mark}", "shelf": "north", "shelves": ["north", "south"]}}\n' for mark in ("😀", "\\ud83d")
    )
    file.write_text(whole, encoding="utf-8")
    assert len(checked_rows(known.schema, file)[1]) == 1
    file.write_text(whole + half, encoding="utf-8")
    with pytest.raises(WrongRow, match="1 of 2 rows .*line 2 of .* has half a character"):
        checked_rows(known.schema, file)


def test_a_domain_without_choices_is_refused_with_a_way_out(known: Known, tmp_path: Path) -> None:
    schema = known.schema.model_copy(update={"columns": known.schema.columns.model_copy(update={"choices": None})})
    with pytest.raises(DataError, match="names no column of choices"):
        checked_rows(schema, write_jsonl(tmp_path / "n.jsonl", parcels(range(3), ("red",))))


def test_what_is_there_already_or_comes_twice_is_left_out_once(known: Known, tmp_path: Path) -> None:
    old = parcels(range(4), ("red", "blue"))
    rows = [*old, *parcels(range(1000, 1003), ("green",)), row("Parcel 1001, is GREEN")]
    found = new(known, tmp_path, rows)
    assert [one.why for one in found.left_out] == ["there already"] * 4 + ["twice in the file"]
    assert [one.line for one in found.left_out] == [1, 2, 3, 4, 8]
    assert found.as_dict()["left_out"] == {"there already": 4, "twice in the file": 1} and len(found.rows) == 3


def test_a_long_row_with_a_few_other_words_is_nearly_there_but_not_with_another_answer(known: Known, tmp_path: Path) -> None:
    other = LONG.replace("oranges", "lemons")
    found = new(known, tmp_path, [row(LONG), row(other), row(LONG.replace("sunrise", "noon"), "north"), row("Another one")])
    assert [(one.line, one.why) for one in found.left_out] == [(2, "nearly twice in the file")]


def test_one_question_with_two_answers_is_left_out_with_both(known: Known, tmp_path: Path) -> None:
    rows = [row("parcel 1000 is green."), row("parcel 1001 is green."), row("parcel 1000 is green.", "south")]
    found = new(known, tmp_path, [*rows, row("parcel 0 is red.", "south")])
    assert {(one.line, one.why) for one in found.left_out} == {
        (line, "another answer to the same question") for line in (1, 3, 4)
    }
    assert [one.question for one in found.rows] == ["parcel 1001 is green."]


def test_a_row_that_repeats_a_held_out_one_is_blocked_whatever_its_own_split(tmp_path: Path) -> None:
    said = next(f"{LONG} {n}" for n in range(100) if split_of(" ".join(f"{LONG} {n}".casefold().split())) == "gate")
    toml = write_task(tmp_path)
    with (tmp_path / "parcels.jsonl").open("a") as out:
        out.write(json.dumps(row(said)) + "\n")
    again = row(f"Listen: {said} and more", "north")  # of another answer: no duplicate, and yet what the gate asks
    found = new(Known.of(str(toml)), tmp_path, [again, row("parcel 1000 is green.")])
    assert [(one.line, one.why) for one in found.left_out] == [(1, "repeats a held-out row")]


def test_a_row_that_the_champion_was_fitted_on_elsewhere_is_not_measured_on(known: Known, tmp_path: Path) -> None:
    asked = parcels(range(1000, 1060), ("green",))
    fitted = Fingerprints.of([example(one["text"], one["text"]) for one in asked])
    found = new(known, tmp_path, asked, fitted)
    assert {one.why for one in found.left_out} == {"repeats a row that was fitted"}
    assert found.rows and {split_of(one.group) for one in found.rows} == {"train"}


def test_a_new_question_on_a_known_passage_is_no_duplicate() -> None:
    said = SaidBefore([example("a", "Which ship took it?", context=LONG)])
    assert said.duplicate(example("b", "Who slept?", context=LONG)) is None
    same = said.duplicate(example("c", "Which ship took it?", context=LONG.replace("oranges", "lemons")))
    assert same is not None and not same.exact


def test_what_shares_no_run_of_words_with_a_held_out_row_is_not_blocked() -> None:
    held = [example("h", LONG)]
    assert blocked([example("a", "Which ship took the oranges?")], held, frozenset()) == {}
    assert blocked([example("a", f"{LONG} again")], held, frozenset())["a"].id == "h"
    assert blocked([example("h", f"{LONG} again")], held, frozenset()) == {}  # of its group


def test_all_tasks_of_a_round_hold_out_the_same_rows_and_train_on_different_ones(known: Known, tmp_path: Path) -> None:
    rows = new(known, tmp_path, parcels(range(1000, 1060), ("green",))).rows
    tasks = write_tasks(tmp_path / "data", known, rows)
    whole, with_old, alone = (task_named(str(file)) for file in (tasks.all, tasks.with_old, tasks.new_alone))
    for split in ("search", "select", "gate"):
        held = [[one.id for one in task.examples(split, 999)] for task in (with_old, alone)]
        assert held[0] == held[1] and set(held[0]) == {one.id for one in whole.examples(split, 999)}
    trains = [{one.question for one in task.examples("train", 999)} for task in (whole, with_old, alone)]
    fresh = {one.question for one in rows if split_of(one.group) == "train"}
    assert trains[2] == fresh and fresh < trains[1] < trains[0] and len(trains[1]) == 2 * len(fresh)
    assert {task.name for task in (whole, with_old, alone)} == {"shelves"}


def test_the_next_round_knows_all_rows_and_still_reads_the_users_columns(known: Known, tmp_path: Path) -> None:
    rows = new(known, tmp_path, parcels(range(1000, 1060), ("green",))).rows
    tasks = write_tasks(tmp_path / "data", known, rows)
    later = Known.of(str(tasks.new_alone))
    assert len(later.task.rows) == len(known.task.rows) + len(rows) and later.schema == known.schema
    found = new(later, tmp_path, parcels(range(1058, 1064), ("green",)))
    assert found.count("there already") == 2 and len(found.rows) == 4


def test_a_domain_without_rows_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'icd10-chapter' is built in: .*adapter.warm_start = .models:/NAME@champion"):
        Known.of("icd10-chapter")
    streamed = write_task(tmp_path)
    streamed.write_text("stream = true\n" + streamed.read_text())
    with pytest.raises(DataError, match="shelves.toml' is no task of rows"):
        Known.of(str(streamed))


def test_tasks_that_would_train_on_what_is_held_out_leave_nothing_behind(known: Known, tmp_path: Path) -> None:
    def placed(split: str, start: str) -> Example:
        texts = (f"{start} {LONG} {n}" for n in range(200))
        text = next(text for text in texts if split_of(text) == split)
        return Example(text, text, "east", tuple(OPTIONS), group=text)

    with pytest.raises(DataError, match="No held-out row may repeat a training row"):
        write_tasks(tmp_path / "data", known, [placed("train", "one"), placed("gate", "two")])
    assert not (tmp_path / "data").exists() and not RoundTasks(tmp_path / "data").all.exists()
