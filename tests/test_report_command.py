"""`graftline report`: names, what is written and logged, and what it says of a real study and release."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from small_releases import promote, random_lora, write_release
from stores import store_at
from test_cli import ended, one_sentence
from told_reports import gate_report
from told_studies import complete, empty_in
from toy_engine import ToyEngine

from adapters.backbone import TESTBED, Backbone
from evaluation.admission import admissions
from evaluation.task import Split
from evaluation.tasks.alchemy import ALCHEMY
from registry.measurements import recorded_measured
from registry.names import ReleaseName
from registry.release import MANIFEST_TAG, publish
from registry.tracking import Tracking
from registry.verdicts import record_verdict, version_tags


@pytest.fixture
def shelf(backbone: Backbone, tmp_path: Path) -> Tracking:
    """The release shelves@1 of one run, and the study `small` with two trials."""
    tracking = store_at(tmp_path)
    write_release(tmp_path / "files", backbone, random_lora(backbone, 1), domain="icd10-chapter", protected=("ordering",))
    run_id = tracking.start_run("shelves", "trial 0")
    tracking.end_run(run_id)
    publish(tracking, "shelves", tmp_path / "files", run_id)
    study = empty_in(tmp_path / "studies" / "small" / "optuna.db")
    study.add_trials([complete(0.1, -0.2), complete(0.2, -3.0, feasible=False)])
    return tracking


def html_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_a_release_is_reported_in_this_directory_and_logged_with_its_run(
    shelf: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(shelf, "shelves", 1)
    assert ended(("report", "shelves", "--home", ".", "--json"), tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["subject"], told["file"]) == ("shelves@1", "shelves-1-report.html")
    html = html_of(tmp_path / "shelves-1-report.html")
    assert "was not brought before the gate" in html and "graftline promote shelves@1" in html
    with shelf.client() as client:
        assert [one.path for one in client.list_artifacts(told["run_id"], "report")] == ["report/shelves-1-report.html"]
        assert client.get_run(told["run_id"]).info.run_name == "trial 0"


def test_a_gated_release_opens_with_the_gates_sentence(shelf: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_report("shelves@1")
    record_verdict(shelf, ReleaseName("shelves", 1), gate)
    assert ended(("report", "shelves@1", "--home", ".", "--out", "new/page.html"), tmp_path, monkeypatch) == 0
    assert gate.sentence in html_of(tmp_path / "new" / "page.html")


def test_a_study_is_reported_by_its_name_even_without_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty_in(tmp_path / "studies" / "small" / "optuna.db").add_trials([complete(0.1, -0.2), complete(0.2, -3.0, feasible=False)])
    assert ended(("report", "small", "--home", "."), tmp_path, monkeypatch) == 0
    assert "Trial 0 of study small would be published" in html_of(tmp_path / "small-report.html")
    assert "MLflow" not in capsys.readouterr().out and not (tmp_path / "mlflow.db").exists()


def test_a_name_of_both_is_the_champion_unless_the_study_is_asked_for(
    shelf: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(shelf, "small", tmp_path / "files")

    def subject(*options: str) -> str:
        assert ended(("report", "small", "--home", ".", "--json", *options), tmp_path, monkeypatch) == 0
        return str(json.loads(capsys.readouterr().out)["subject"])

    assert subject() == "small"  # published, and not promoted
    promote(shelf, "small", 1)
    assert (subject(), subject("--study")) == ("small@1", "small")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("nowhere",), "(studies: small; models: shelves)"),
        (("nowhere", "--study"), "'nowhere' is neither here (studies: small; models: shelves)"),
        (("shelves@7",), "'shelves@7' is neither here"),
        (("shelves",), "nothing of shelves has been promoted"),
        (("a/b",), "'a/b' is neither here"),
        (("small", "--examples", "1"), "small has none here"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    shelf: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: tuple[str, ...],
    said: str,
) -> None:
    assert ended(("report", *asked, "--home", "."), tmp_path, monkeypatch) == 2
    assert said in one_sentence(capsys)
    assert not list(tmp_path.glob("*.html"))


def test_a_page_that_cannot_be_written_leaves_nothing(
    shelf: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert ended(("report", "shelves@1", "--home", ".", "--out", "file/page.html"), tmp_path, monkeypatch) == 2
    one_sentence(capsys)
    assert sorted(path.name for path in tmp_path.glob("*file*")) == ["file", "files"]


COUNTS: dict[Split, int] = {"train": 60, "search": 30, "select": 30, "gate": 60}
RECIPE = f"""
name = "alchemists"
backbone = "{TESTBED}"
domain = "DOMAIN"
protected = ["alchemy"]
search = ["method.learning_rate"]

[adapter.lora]
rank = 4

[method]
steps = 4
batch_size = 4
num_examples = 40
target = "rationale"

[evaluation]
domain_items = 16
chain_items = 8
generated_items = 4

[study]
trials = 2
scales = [0.5, 1.0]

[study.stop]
checkpoints = []
"""


def domain_file(folder: Path) -> Path:
    """Alchemy of two steps and three as a user's own task, with its steps and options."""
    family = ALCHEMY.at_length(2, 3)
    drawn = [one for split, count in COUNTS.items() for one in family.examples(split, count, seed=3)]
    with (folder / "stills.csv").open("w", newline="") as file:
        options = {one.id: sorted({one.answer, *family.problem(one.id).rivals}) for one in drawn}
        rows = [(one.question, one.answer, one.rationale, "|".join(options[one.id])) for one in drawn]
        csv.writer(file).writerows([("question", "answer", "why", "options"), *rows])
    columns = 'question = "question"\nanswer = "answer"\nrationale = "why"\nchoices = "options"\n'
    (folder / "stills.toml").write_text(f'name = "stills"\nfile = "stills.csv"\n[columns]\n{columns}')
    return folder / "stills.toml"


@pytest.mark.slow
def test_a_real_study_and_its_release_are_reported_whole_and_the_second_time_without_a_model(
    testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admissions(ToyEngine(testbed, ALCHEMY.examples("search", 24, seed=5)), testbed, [ALCHEMY], tmp_path / "cache")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("DOMAIN", str(domain_file(tmp_path))))

    def run(*arguments: str) -> dict[str, object]:
        assert ended((*arguments, "--home", ".", "--json"), tmp_path, monkeypatch) in (0, 1), capsys.readouterr()
        return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))

    run("tune", "recipe.toml")
    before = run("report", "alchemists", "--out", "study.html")
    html = html_of(tmp_path / "study.html")
    assert before["subject"] == "alchemists" and "2 of 2 trials finished" in html and "graftline publish alchemists" in html

    run("publish", "alchemists", "--trial", "0")
    told = run("report", "alchemists@1", "--measure", "--items", "8", "--examples", "1", "--out", "first.html")
    html, tracking = html_of(tmp_path / "first.html"), Tracking.at(tmp_path)
    assert told["missing"] == ["What later domains did to earlier ones", "What the data rows cost"]
    digest = version_tags(tracking, ReleaseName("alchemists", 1))[MANIFEST_TAG]
    (evaluation,), (traces,) = (recorded_measured(tracking, digest, kind) for kind in ("evaluation", "traces"))
    for row in evaluation.document["rows"]:
        if row["change"] is not None and row["role"] in ("domain", "protected"):
            assert f'<data value="{row["change"]}">' in html, row["measure"]
    example = traces.document["tasks"][0]["examples"][0]
    assert example["before"]["steps"][0] in html and len(traces.document["tasks"]) == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr(Backbone, "load", refuse)
    run("report", "alchemists@1", "--measure", "--examples", "1", "--out", "second.html")
    assert html_of(tmp_path / "second.html") == html
    after = run("report", "alchemists", "--study", "--out", "study.html")
    assert after["run_id"] == before["run_id"] != told["run_id"]
    assert "alchemists@1" in html_of(tmp_path / "study.html")
