"""What a graph gives: items by hops, held-out paths, a sample that is a task of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_graph import triples
from typer.testing import CliRunner

from evaluation.errors import DataError
from evaluation.task import SPLITS
from evaluation.tasks.user_data import load_task
from service.cli import app
from tuning.curriculum import Curriculum, graph_task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "town.tsv").write_text("".join("\t".join(row) + "\n" for row in triples()))
    return tmp_path / "town.tsv"


def test_a_sample_has_the_path_of_every_item_and_is_a_task_of_its_own(file: Path) -> None:
    found = Curriculum.of(graph_task(str(file)), 40)
    found.write(file.parent / "sample.jsonl")
    rows = [json.loads(line) for line in (file.parent / "sample.jsonl").read_text().splitlines()]
    assert len(rows) == 160 and found.num_held_out == 120
    for row in rows:
        assert len(row["path"]) == row["hops"] and row["path"][-1][-1] == row["answer"]
        assert row["rationale"].splitlines() == [" -> ".join(hop) for hop in row["path"]]
    (file.parent / "mine.toml").write_text(
        'name = "mine"\nfile = "sample.jsonl"\n[columns]\nid = "id"\nquestion = "question"\nanswer = "answer"\n'
        'choices = "choices"\nrationale = "rationale"\ngroup = "group"\n'
    )
    task = load_task(file.parent / "mine.toml")
    assert {split: {e.id for e in task.by_split[split]} for split in SPLITS} == {
        split: {e.id for e in found.items[split]} for split in SPLITS
    }


def test_the_command_says_what_a_graph_gives(file: Path) -> None:
    sample = file.parent / "sample.jsonl"
    done = CliRunner().invoke(app, ["curriculum", str(file), "--items", "30", "--sample", str(sample), "--held-out-hops", "2,3"])
    assert done.exit_code == 0, done.output
    assert "90 held-out paths" in done.output and "works at" in done.output and "120 items written" in done.output
    as_json = CliRunner().invoke(app, ["curriculum", str(file), "--items", "30", "--json"])
    said = json.loads(as_json.output)
    assert set(said["items"]["train"]) == {"1", "2", "3"} and said["held_out_paths"] == 90 and said["edges"]["works at"] == 120


def test_a_length_that_the_graph_has_no_path_of_is_one_sentence_and_nothing_is_written(file: Path) -> None:
    file.write_text("".join(f"a{number}\tr\tb{number}\n" for number in range(30)))
    done = CliRunner().invoke(app, ["curriculum", str(file), "--hops", "2", "--sample", str(file.parent / "s.jsonl")])
    assert done.exit_code != 0 and "An item of 2 hops needs a path of that length" in str(done.exception)
    assert not list(file.parent.glob("s.jsonl*"))


def test_numbers_that_are_none_are_refused(file: Path) -> None:
    done = CliRunner().invoke(app, ["curriculum", str(file), "--hops", "one"])
    assert done.exit_code == 2 and "such as 1,2,3" in done.output


@pytest.mark.parametrize(
    ("hops", "said"), [(("--hops", "0"), "from 1 to 8"), (("--held-out-hops", "9"), "8"), (("--held-out-hops", "1,2"), "at 2")]
)
def test_lengths_that_no_task_can_have_are_refused_as_in_a_task_file(file: Path, hops: tuple[str, str], said: str) -> None:
    done = CliRunner().invoke(app, ["curriculum", str(file), *hops])
    assert done.exit_code != 0 and isinstance(done.exception, DataError) and said in str(done.exception)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "What is {number}?", "answer": "{number % 7}"}}\n' for number in range(60))
    )
    (tmp_path / "rows.toml").write_text(
        'name = "rows"\nfile = "rows.jsonl"\n[columns]\nquestion = "question"\nanswer = "answer"\n'
    )
    with pytest.raises(DataError, match="made of a graph"):
        graph_task(str(tmp_path / "rows.toml"))
    with pytest.raises(DataError, match="Leave --hops"):
        graph_task("icd10", (1, 2))
