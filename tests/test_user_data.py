"""A user's own data: what is read, and one clear sentence for whatever is wrong with it."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from documents import ROOT

from evaluation import errors
from evaluation.task import SPLITS, Task
from evaluation.tasks import task_named
from evaluation.tasks.rows import read_file
from evaluation.tasks.user_data import Columns, TaskSpec, load_task

COLUMNS = {"question": "q", "answer": "a"}


def rows(count: int = 60) -> list[dict[str, Any]]:
    return [
        {"q": f"Is number {index} even?", "a": "yes" if index % 2 == 0 else "no", "key": str(index)} for index in range(count)
    ]


def toml(folder: Path, columns: dict[str, Any], **top: str) -> Path:
    top = {"name": "mine", **({"file": "data.jsonl"} if "dataset" not in top else {}), **top}
    lines = [*(f"{key} = {json.dumps(value)}" for key, value in top.items()), "[columns]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in columns.items()]
    (folder / "task.toml").write_text("\n".join(lines))
    return folder / "task.toml"


def jsonl(folder: Path, data: list[dict[str, Any]], columns: dict[str, Any] = COLUMNS, **top: str) -> Path:
    (folder / "data.jsonl").write_text("\n".join(json.dumps(values) for values in data))
    return toml(folder, columns, **top)


def test_the_document_names_every_key_of_a_task_file() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    table = page.partition("\n## A domain\n")[2].partition("\n## ")[0]
    keys = {*TaskSpec.model_fields, *Columns.model_fields} - {"columns"}
    assert [key for key in sorted(keys) if f"`{key}`" not in table] == []


def test_every_row_of_a_jsonl_file_is_in_exactly_one_split(tmp_path: Path) -> None:
    task = task_named(str(jsonl(tmp_path, rows())))
    assert isinstance(task, Task)
    assert task.name == "mine"
    found = [example for split in SPLITS for example in task.examples(split, 100)]
    assert sorted(example.question for example in found) == sorted(values["q"] for values in rows())
    assert {example.answer for example in found} == {"yes", "no"}


def test_csv_and_parquet_give_the_same_examples_as_jsonl(tmp_path: Path) -> None:
    first = load_task(jsonl(tmp_path, rows(), {**COLUMNS, "id": "key"}))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a", "key"])
        writer.writeheader()
        writer.writerows(rows())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), tmp_path / "data.parquet")
    for name in ("data.csv", "data.parquet"):
        again = load_task(toml(tmp_path, {**COLUMNS, "id": "key"}, file=name))
        assert again.rows == first.rows


def test_a_seed_orders_the_rows_and_a_count_cuts_them(tmp_path: Path) -> None:
    task = load_task(jsonl(tmp_path, rows()))
    assert task.examples("train", 5, seed=1) == task.examples("train", 100, seed=1)[:5]
    assert task.examples("train", 100, seed=1) != task.examples("train", 100, seed=2)


def test_rows_of_one_group_stay_in_one_split(tmp_path: Path) -> None:
    data = [{**values, "patient": f"p{index % 20}"} for index, values in enumerate(rows(100))]
    task = load_task(jsonl(tmp_path, data, {**COLUMNS, "group": "patient"}))
    owners = {(example.group, split) for split in SPLITS for example in task.examples(split, 100)}
    assert len(owners) == 20


def test_without_a_group_column_two_spellings_of_a_question_stay_together(tmp_path: Path) -> None:
    data = [*rows(), *({**values, "q": values["q"].upper() + "!"} for values in rows())]
    task = load_task(jsonl(tmp_path, data))
    assert len({example.group for example in task.rows}) == 60


def test_questions_in_another_script_have_groups_of_their_own(tmp_path: Path) -> None:
    data = [
        {"q": f"Чётное ли число {word}?", "a": "да" if index % 2 else "нет"}
        for index, word in enumerate("абвгдежзиклмнопрстуф" * 2)
    ]
    assert len({example.group for example in load_task(jsonl(tmp_path, data)).rows}) == 20


@pytest.mark.parametrize("choices", [["no", "yes"], "no|yes", "no | yes"])
def test_choices_come_as_a_list_or_cut_at_the_separator(tmp_path: Path, choices: object) -> None:
    task = load_task(jsonl(tmp_path, [{**values, "options": choices} for values in rows()], {**COLUMNS, "choices": "options"}))
    assert {example.choices for example in task.rows} == {("no", "yes")}


def test_choices_come_from_several_columns(tmp_path: Path) -> None:
    data = [{**values, "one": "no", "two": "yes"} for values in rows()]
    task = load_task(jsonl(tmp_path, data, {**COLUMNS, "choices": ["one", "two"]}))
    assert {example.choices for example in task.rows} == {("no", "yes")}


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"breaks a rule at columns.anwser.*Known keys there: question, answer"):
        load_task(jsonl(tmp_path, rows(), {**COLUMNS, "anwser": "a"}))
    with pytest.raises(errors.DataError, match=r"breaks a rule at path.*Known keys there: name, file"):
        load_task(jsonl(tmp_path, rows(), path="data.jsonl"))


def test_a_task_has_one_source(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="exactly one of them; both is given"):
        load_task(toml(tmp_path, COLUMNS, file="data.jsonl", dataset="owner/name"))


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingColumn, match=r"no 'label'. It has q, a, key"):
        load_task(jsonl(tmp_path, rows(), {"question": "q", "answer": "label"}))


def test_an_empty_file_and_an_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.EmptySplit, match="has none"):
        load_task(jsonl(tmp_path, []))
    with pytest.raises(errors.EmptySplit, match="got none of the 2 in"):
        load_task(jsonl(tmp_path, rows(2)))


def test_one_answer_for_all_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.OneClassAnswers, match="all 60 rows of .* have 'yes'"):
        load_task(jsonl(tmp_path, [{**values, "a": "yes"} for values in rows()]))


def test_answers_that_differ_in_their_sign_are_two(tmp_path: Path) -> None:
    data = [{**values, "a": "-4" if index % 2 else "4"} for index, values in enumerate(rows())]
    assert len(load_task(jsonl(tmp_path, data)).rows) == 60


def test_an_answer_that_is_no_choice_is_named_by_its_line(tmp_path: Path) -> None:
    data = [{**values, "options": ["yes", "no"]} for values in rows()]
    data[6]["a"] = "maybe"
    with pytest.raises(errors.AnswerNotAmongChoices, match=r"line 7 of .* the answer 'maybe' and the choices \['yes', 'no'\]"):
        load_task(jsonl(tmp_path, data, {**COLUMNS, "choices": "options"}))


@pytest.mark.parametrize("options", [["yes"], ["yes", "yes"], None, ""])
def test_choices_that_leave_no_choice_are_refused(tmp_path: Path, options: object) -> None:
    data = [{**values, "options": options} for values in rows()]
    with pytest.raises(errors.WrongRow, match="line 1 of"):
        load_task(jsonl(tmp_path, data, {**COLUMNS, "choices": "options"}))


def test_a_row_without_an_answer_is_named_by_its_line(tmp_path: Path) -> None:
    data = rows()
    data[3]["a"] = "  "
    with pytest.raises(errors.WrongRow, match="Column 'a' must have a value in every row, but line 4 of"):
        load_task(jsonl(tmp_path, data))


@pytest.mark.parametrize("value", [["yes"], [], {"text": "yes"}])
@pytest.mark.parametrize("column", ["q", "a", "why", "about", "topic", "key"])
def test_a_list_or_an_object_where_text_belongs_is_named_by_line_and_column(tmp_path: Path, column: str, value: object) -> None:
    columns = {**COLUMNS, "rationale": "why", "context": "about", "group": "topic", "id": "key"}
    data = [{**row, "why": "so", "about": 3, "topic": row["key"]} for row in rows()]
    assert load_task(jsonl(tmp_path, data, columns)).examples("train", 1)[0].context == "3"
    data[3][column] = value
    with pytest.raises(errors.WrongRow, match=f"'{column}' in line 4 of .*data.jsonl' holds"):
        load_task(jsonl(tmp_path, data, columns))


def test_bytes_and_lists_of_a_parquet_column_are_no_text(tmp_path: Path) -> None:
    for value in (b"yes", ["yes"]):
        data = [{**row, "a": value} for row in rows()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "data.parquet")
        with pytest.raises(errors.WrongRow, match="'a' in line 1 of"):
            load_task(toml(tmp_path, COLUMNS, file="data.parquet"))


def test_choices_are_texts_one_by_one(tmp_path: Path) -> None:
    columns = {**COLUMNS, "choices": "options"}
    for options in ([["yes"], "no"], [{"text": "yes"}, "no"], {"yes": 1, "no": 2}):
        with pytest.raises(errors.WrongRow, match="'options' in line 1"):
            load_task(jsonl(tmp_path, [{**row, "options": options} for row in rows()], columns))
    found = load_task(jsonl(tmp_path, [{**row, "options": ["yes", None, "no"]} for row in rows()], columns))
    assert found.examples("train", 1)[0].choices == ("yes", "no")


@pytest.mark.parametrize(("line", "rule"), [('{"q": "half', "is not JSON"), ("[1, 2]", r"holds \[1, 2\]")])
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str, rule: str) -> None:
    path = jsonl(tmp_path, rows())
    (tmp_path / "data.jsonl").write_text((tmp_path / "data.jsonl").read_text() + "\n" + line)
    with pytest.raises(errors.WrongRow, match=f"line 61 of .* {rule}"):
        load_task(path)


def test_a_byte_order_mark_and_a_long_cell_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps({"q": long}) + "\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text(f"\ufeffq\n{long}\n", encoding="utf-8")
    for name in ("a.jsonl", "a.csv"):
        [row] = read_file(tmp_path / name)
        assert row.text("q", name) == long.strip()


def test_a_csv_row_with_a_cell_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    for line, word in (("Is 7, or 8, even?,yes,1", "more"), ("Is 7 even?,no", "fewer")):
        (tmp_path / "data.csv").write_text(f"q,a,key\nIs 2 even?,yes,0\n{line}\n")
        with pytest.raises(errors.WrongRow, match=f"line 3 of .* has {word}"):
            load_task(toml(tmp_path, COLUMNS, file="data.csv"))


def test_all_rows_that_break_a_rule_are_named_at_once(tmp_path: Path) -> None:
    data = rows()
    for index in (3, 8):
        data[index]["a"] = ""
    with pytest.raises(errors.WrongRow, match="2 of 60 rows cannot be used. .*line 4 of .*line 9 of"):
        load_task(jsonl(tmp_path, data))
    with pytest.raises(errors.WrongRow, match="60 of 60 rows .*line 5 of .* And 55 more"):
        load_task(jsonl(tmp_path, [{**values, "a": ""} for values in rows()]))


def test_one_question_with_two_right_answers_is_refused_and_a_repeated_row_is_not(tmp_path: Path) -> None:
    data = [*rows(), rows()[4]]
    assert len(load_task(jsonl(tmp_path, data)).rows) == 61
    data[60]["a"] = "no"
    with pytest.raises(errors.ContradictoryAnswers, match="but 1 of .*'yes' in mine/5 and 'no' in mine/61 to 'Is number 4 even"):
        load_task(jsonl(tmp_path, data))
    options = [{**values, "options": ["yes", "no"]} for values in data]
    options[60]["options"] = ["no", "never"]  # asked of other options, it is another question
    assert len(load_task(jsonl(tmp_path, options, {**COLUMNS, "choices": "options"})).rows) == 61


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("q;a;key\nIs 2 even?;yes;0\n", "separated by commas, but .* is 'q;a;key', in one cell. .* ';'"),
        ("q\ta\nIs 2 even?\tyes\n", r"in one cell. Write it again with commas in place of '\\t'"),
        ("q,a,a\nIs 2 even?,yes,no\n", "has 'a' more than once"),
        ('q,a\n"Is 2 even?,yes\n', "closes every quote .* that begins in line 2 of .* unexpected end of data"),
    ],
)
def test_a_csv_file_of_another_dialect_is_refused_with_what_to_change(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(errors.UnreadableFile, match=told):
        load_task(toml(tmp_path, COLUMNS, file="data.csv"))


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(",,q\n0,1,Is 2 even?\n")
    assert len(read_file(tmp_path / "data.csv")) == 1


def test_the_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"q,a\n" + b"Is 2 even?,yes\n" * 9_000 + b"caf\xe9,no\n")
    with pytest.raises(errors.UnreadableFile, match=r"line 9002 is not UTF-8 \(byte 0xe9\). Write it again, in UTF-8"):
        load_task(toml(tmp_path, COLUMNS, file="data.csv"))


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    data = rows()
    data[9]["key"] = "4"
    with pytest.raises(errors.DuplicateId, match="rows 5 and 10 of .* are both '4'"):
        load_task(jsonl(tmp_path, data, {**COLUMNS, "id": "key"}))


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreadableFile, match="task.toml' cannot be read"):
        load_task(tmp_path / "task.toml")
    with pytest.raises(errors.UnreadableFile, match="'.*data.jsonl' does not"):
        load_task(toml(tmp_path, COLUMNS))
    with pytest.raises(errors.UnreadableFile, match=r"Data comes as .jsonl, .csv, .parquet, but .* ends in '.xlsx'"):
        load_task(toml(tmp_path, COLUMNS, file="data.xlsx"))
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(errors.UnreadableFile, match=r"readable as .parquet.*to_parquet") as damaged:
        load_task(toml(tmp_path, COLUMNS, file="data.parquet"))
    assert "UTF-8" not in str(damaged.value)
    (tmp_path / "data.jsonl").write_bytes(b'{"q": "caf\xe9"}')
    with pytest.raises(errors.UnreadableFile, match="Write it again, in UTF-8"):
        load_task(toml(tmp_path, COLUMNS))


def test_one_question_in_two_groups_of_different_splits_is_refused(tmp_path: Path) -> None:
    data = [
        {**values, "q": "Is it the same question every time, whoever asks?", "who": f"p{index}"}
        for index, values in enumerate(rows())
    ]
    with pytest.raises(errors.Overlap, match="give both the same group"):
        load_task(jsonl(tmp_path, data, {**COLUMNS, "group": "who"}))


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="`datasets` is installed here")
def test_a_hub_dataset_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingPackage, match="pip install datasets"):
        load_task(toml(tmp_path, COLUMNS, dataset="owner/name"))


@pytest.mark.parametrize("name", ["boxes", "text", "icd10"])
def test_a_name_that_is_built_in_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.DataError, match="which is built in. Rename it"):
        load_task(jsonl(tmp_path, rows(), name=name))


LONG = " ".join(f"word{index}" for index in range(30))


def test_held_out_rows_that_repeat_a_training_row_are_refused_or_left_out(tmp_path: Path) -> None:
    data = rows(200)
    for index, values in enumerate(data):
        values["q"] = f"{LONG if index < 8 else f'number {index} of its own'} {index}?"
    with pytest.raises(errors.Overlap):
        load_task(jsonl(tmp_path, data))
    kept = load_task(jsonl(tmp_path, data, repeats="leave_out"))
    held = [row for split in SPLITS[1:] for row in kept.examples(split, 200)]
    assert held and not any(LONG in row.question for row in held)
    assert any(LONG in row.question for row in kept.examples("train", 200))
    with pytest.raises(errors.DataError, match="needs all rows at once, but the task streams"):
        load_task(toml(tmp_path, COLUMNS, repeats="leave_out", stream=True))  # type: ignore[arg-type]
