"""A domain that is larger than memory: what is drawn of it, and that no more is held."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.errors import EmptySplit, MissingColumn, OneClassAnswers, UnreadableFile, WrongRow
from evaluation.task import SPLITS, Example, split_of
from evaluation.tasks.definition import definition
from evaluation.tasks.streamed import StreamedTask
from evaluation.tasks.user_data import load_task

ROWS = [{"q": f"What comes after {n}?", "a": str(n + 1), "code": f"{n:03d}"} for n in range(300)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))


def task_at(directory: Path, file: str = "rows.jsonl", more: str = "") -> StreamedTask:
    toml = directory / "task.toml"
    toml.write_text(f'name = "own"\nfile = "{file}"\nstream = true\n[columns]\nquestion = "q"\nanswer = "a"\n{more}')
    task = load_task(toml)
    assert isinstance(task, StreamedTask)
    return task


def jsonl(file: Path, rows: list[dict[str, str]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def drawn_of(rows: list[Example], count: int = 10**6) -> StreamedTask:
    return StreamedTask("own", "memory", "identity", lambda: iter(rows), {})


def ids(rows: list[Example]) -> list[str]:
    return [row.id for row in rows]


def test_splits_are_disjoint_and_those_of_a_task_that_is_held(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", ROWS)
    task = task_at(tmp_path)
    (tmp_path / "held.toml").write_text('name = "own"\nfile = "rows.jsonl"\n[columns]\nquestion = "q"\nanswer = "a"\n')
    held = load_task(tmp_path / "held.toml")
    for split in SPLITS:
        assert sorted(ids(task.examples(split, 300))) == sorted(ids(held.examples(split, 300)))
        assert all(split_of(row.group) == split for row in task.examples(split, 300))


def test_the_same_rows_are_drawn_whatever_their_order_and_another_seed_draws_others() -> None:
    rows = [Example(str(n), f"q {n}", str(n), group=f"g {n}") for n in range(200)]
    first, turned = drawn_of(rows)._drawn(20, seed=0), drawn_of(rows[::-1])._drawn(20, seed=0)
    assert ids(first["train"]) == ids(turned["train"]) and len(first["train"]) == 20
    assert ids(first["train"]) != ids(drawn_of(rows)._drawn(20, seed=1)["train"])


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    rows = [Example(str(n), f"q {n}", str(n), group=f"g {n}") for n in range(200)]
    assert ids(drawn_of(rows)._drawn(50, seed=0)["train"])[:20] == ids(drawn_of(rows)._drawn(20, seed=0)["train"])


def test_every_row_is_drawn_about_equally_often() -> None:
    rows = [Example(str(n), f"q {n}", str(n), group=f"g {n}") for n in range(60)]
    train = [row.id for row in rows if split_of(row.group) == "train"]
    times = dict.fromkeys(train, 0)
    for seed in range(400):
        for name in ids(drawn_of(rows)._drawn(5, seed)["train"]):
            times[name] += 1
    expected = 400 * 5 / len(train)
    assert sum((count - expected) ** 2 / expected for count in times.values()) < 2 * len(train)  # chi-squared, far in its tail


def test_what_was_drawn_is_kept_until_the_data_is_another(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    passes = 0

    def counted(task: StreamedTask) -> StreamedTask:
        def read() -> Iterator[Example]:
            nonlocal passes
            passes += 1
            return task.read()

        return StreamedTask(task.name, task.source, task.identity, read, task.told, task.files)

    first = counted(task_at(tmp_path)).examples("train", 20)
    assert ids(counted(task_at(tmp_path)).examples("train", 10)) == ids(first)[:10]
    counted(task_at(tmp_path)).examples("gate", 10**6)
    assert passes == 1
    jsonl(file, ROWS[:200])
    assert len(counted(task_at(tmp_path)).examples("train", 10**6)) < len(ROWS) * 0.55 and passes == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rows": []}', '{"rows": [{"id": 1}], "whole": true}'])
def test_what_was_kept_and_is_damaged_is_drawn_again(tmp_path: Path, text: str) -> None:
    jsonl(tmp_path / "rows.jsonl", ROWS)
    first = task_at(tmp_path).examples("train", 20)
    (kept,) = (tmp_path / "cache" / "drawn").glob("*/train.json")
    kept.write_text(text)
    assert task_at(tmp_path).examples("train", 20) == first


def test_a_folder_of_parquet_and_one_of_csv_give_the_rows_of_the_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    jsonl(tmp_path / "rows.jsonl", ROWS)
    for name in ("tables", "cells"):
        (tmp_path / name).mkdir()
    for part in range(3):
        rows = ROWS[100 * part : 100 * part + 100]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tables" / f"{part}.parquet")
        with (tmp_path / "cells" / f"{part}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(rows)
    wanted, *others = (task_at(tmp_path, file, 'id = "code"').examples("train", 50) for file in ("rows.jsonl", "tables", "cells"))
    assert wanted == others[0] == others[1]
    assert any(row.id.startswith("0") for row in wanted)  # 007 stays 007


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"q": "?", "a": "1"}], WrongRow, "needs letters or digits, but line 1"),
        ([{"question": "what", "a": "1"}], MissingColumn, "has no 'q'. It has question, a"),
        ([{"q": f"what {n}", "a": "1"} for n in range(60)], OneClassAnswers, "at least two different answers, but all"),
        ([{"q": "what one", "a": "1"}, {"q": "what one", "a": "2"}], EmptySplit, "must get at least one group, but"),
    ],
)
def test_data_that_cannot_be_used_says_why(
    tmp_path: Path, rows: list[dict[str, str]], error: type[Exception], message: str
) -> None:
    jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(error, match=message):
        task_at(tmp_path).examples("train", 5), task_at(tmp_path).examples("gate", 5)


def test_a_folder_of_two_kinds_or_none_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "mixed" / "rows.jsonl", ROWS)
    (tmp_path / "mixed" / "notes.txt").write_text("")
    with pytest.raises(UnreadableFile, match="files of one kind.*holds .jsonl, .txt"):
        task_at(tmp_path, "mixed")
    with pytest.raises(UnreadableFile, match="is not there"):
        task_at(tmp_path, "missing.jsonl")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "what", "a": "1"}\n{"q": broken\n')
    with pytest.raises(UnreadableFile, match=r"readable to its end, but '.*rows.jsonl' is not"):
        task_at(tmp_path).examples("train", 5)


def test_the_record_of_a_fit_tells_the_task_file_and_the_digest_of_the_data(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    told = definition(task_at(tmp_path))
    assert told["file"]["stream"] is True and told["data_sha256"]  # type: ignore[index,call-overload]
    jsonl(file, ROWS[1:])
    assert definition(task_at(tmp_path))["data_sha256"] != told["data_sha256"]


@pytest.mark.slow
def test_two_hundred_thousand_rows_are_never_held(tmp_path: Path) -> None:
    filling = "x" * 400
    with (tmp_path / "rows.jsonl").open("w") as out:
        for n in range(200_000):
            out.write(json.dumps({"q": f"What comes after {n}?", "a": str(n + 1), "note": filling}) + "\n")
    size = (tmp_path / "rows.jsonl").stat().st_size
    task = task_at(tmp_path, more='context = "note"')
    next(task.read())  # imports are not what is measured
    tracemalloc.start()
    first = task.examples("train", 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A row that is held takes more than its line: its question is there twice, once normalised.
    assert size > 80 * 2**20 and peak < size / 2
    assert len(first) == 500 and not {row.id for row in first} & {row.id for row in task.examples("gate", 500)}
