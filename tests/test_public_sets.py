"""The benchmark on public sets: what it reads of a folder given by hand, and what its section tells of kept rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import public_sets
from benchmarks.public_report import body
from benchmarks.public_sets import RATES, Place, best_rate, guards, recipe_of
from benchmarks.public_tasks import BBH, DOMAINS, RETENTION, licence, missing, write_tasks
from evaluation.retention import gate_measure
from evaluation.tasks import task_named
from tuning.plan import training_examples
from tuning.usable import check_usable

QUICKSTART = Path(public_sets.__file__).parent.parent / "recipes" / "quickstart.toml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Every set in little: 120 rows of its form in each file."""
    for one in {**DOMAINS, **RETENTION}.values():
        folder = tmp_path / "data" / one.folder
        folder.mkdir(parents=True)
        (folder / "SOURCE.md").write_text(f"# {one.folder}\n\n- Repository: example.org/{one.folder}\n- Licence: MIT\n")
        for file in ("train.jsonl", "test.jsonl"):
            rows = [_row(one.folder, f"{file} {number}", number, "choices" in one.columns) for number in range(120)]
            (folder / file).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


def _row(folder: str, key: str, number: int, chosen: bool) -> dict[str, Any]:
    return {
        "id": key,
        "question": f"Question {key} of {folder}?",
        "choices": ["yes", "no", "maybe"] if chosen else None,
        "answer": "ABC"[number % 3] if chosen else str(number),
        "rationale": f"Because of {key}.",
        "context": f"Of {folder}, {key}.",
        "task": [*BBH, "dyck_languages"][number % (len(BBH) + 1)],
    }


@pytest.fixture
def place(data: Path, tmp_path: Path) -> Place:
    tasks = write_tasks(data, tmp_path / "runs" / "tasks")
    (tmp_path / "runs" / "legal_diversity").mkdir()
    return Place(tmp_path / "runs" / "legal_diversity", recipe_of(QUICKSTART, tasks, "legal-diversity", 6), tasks)


def test_every_task_file_is_read_where_the_data_lie(data: Path, place: Place) -> None:
    found = {name: task_named(str(file)) for name, file in place.tasks.items()}
    assert {name: gate_measure(task).name for name, task in found.items()} == {
        **dict.fromkeys(("legal-diversity", "pubmedqa", "bbh", "arc-easy"), "choice_accuracy"),
        **dict.fromkeys(("gsm8k", "svamp"), "generation"),
        **dict.fromkeys(("gsm8k-chains", "svamp-chains"), "chain_likelihood"),
    }
    fitted = {name for name, task in found.items() if task.examples("train", 10)}
    assert fitted == {"arc-easy", "legal-diversity", "pubmedqa"}
    assert found["legal-diversity"].examples("train", 1)[0].answer in ("yes", "no", "maybe")
    assert not missing(data) and all(str(data) in file.read_text() for file in place.tasks.values())


def test_a_file_that_is_not_there_is_named(data: Path) -> None:
    (data / "svamp" / "test.jsonl").unlink()
    assert missing(data) == [str(Path("svamp") / "test.jsonl")]
    assert licence(data, RETENTION["svamp"]) == ("example.org/svamp", "MIT")


def test_the_recipe_is_the_quickstarts_with_outside_sets_beside_the_families(place: Place) -> None:
    outside = [task_named(name).name for name in place.recipe.protected[7:]]
    assert outside == guards(place.tasks) == ["gsm8k-chains", "svamp-chains", "bbh", "arc-easy"]
    assert place.recipe.evaluation.margins.keys() == {"gsm8k-chains", "svamp-chains"}
    assert place.recipe.search == ("adapter.kind", "method.learning_rate", "method.target", "method.prompt")
    assert place.recipe.study.scales == (0.25, 0.5, 0.75, 1.0) and len(place.recipe.start) == 2


def test_where_no_row_has_a_rationale_answers_alone_are_searched(place: Place) -> None:
    recipe = recipe_of(QUICKSTART, place.tasks, "arc-easy", 6)
    assert recipe.ranges["method.target"] == ("answer",) and recipe.start == ({"method.prompt": "matching"},)
    check_usable(recipe, task_named(recipe.domain), training_examples(recipe, task_named(recipe.domain)))


def test_a_row_that_is_there_is_not_made_again(place: Place) -> None:
    made = []
    for _ in range(2):
        found = place.kept("fit", lambda: made.append(1) or {"gain": 0.5})  # type: ignore[func-returns-value]
        assert found["gain"] == 0.5 and found["commit"]
    assert made == [1]


def test_of_rates_that_are_alike_the_smaller_is_best(place: Place) -> None:
    for rate, accuracy in zip(RATES, (0.5, 0.7, 0.7), strict=True):
        place.kept(f"fit-{rate:g}", lambda rate=rate, accuracy=accuracy: {"rate": rate, "accuracy": accuracy, "gain": 0.1})
    assert best_rate(place) == RATES[1]


def test_nothing_is_told_of_what_is_not_read_yet(data: Path, place: Place) -> None:
    told = "\n".join(body(data, [place]))
    assert (
        told.count("not read yet") == 7
        and "| svamp | the same in one step, an equation for a chain | protected | example.org" in told
    )


def test_the_section_tells_what_was_lost_what_was_not_and_what_could_not_be_measured(data: Path, place: Place) -> None:
    admission = {"base": 0.04, "stderr": 0.04, "chance": 0.12, "damaged_change": -0.04, "n": 24, "measure": "generation"}
    place.kept("admission-gsm8k", lambda: {**admission, "admitted": False, "reasons": ["the backbone scores 0.04"]})
    for rate in RATES:
        place.kept(f"fit-{rate:g}", lambda rate=rate: {"rate": rate, "accuracy": rate, "gain": 0.1})
    place.kept(
        "sweep",
        lambda: {
            "trials": 6,
            "feasible": 2,
            "scales": [0.5, 1.0],
            "directory": "d",
            "params": {"method.target": "answer", "method.learning_rate": 0.00094698},
            "scale": 0.5,
        },
    )
    place.kept("read-plain", lambda: _read((-0.9, -0.95, -0.8), [1.0, 1.0, 0.0, 1.0] * 5))
    place.kept("read-joint", lambda: _read((-0.01, -0.03, 0.0), [1.0, 0.0, 0.0, 1.0] * 5))
    told = "\n".join(body(data, [place]))
    assert "| gsm8k | what is written | 0.04 ± 0.04 | 0.12 | -0.04 | 24 | not measurable: the backbone scores 0.04 |" in told
    assert "-0.900 [-0.950, -0.800] | lost | -0.010 [-0.030, +0.000] | not inferior |" in told
    assert "6 trials, each read at scales 0.5, 1; 2 of which kept every family, and it chose target answer, " in told
    assert "learning_rate 0.000947 at scale 0.5." in told
    assert "on the same 20 items: -0.250 [" in told
    assert "did not fall under plain fine-tuning's best while the families' written traces were lost: gsm8k-chains." in told
    assert "did not fall under what the sweep chose" not in told
    assert "| gsm8k-chains | likelihood of the gold chain and answer | 0.90 | +0.200 [+0.100, +0.300] | no evidence |" in told


def test_gold_chains_count_where_no_arm_lost_what_it_writes(data: Path, place: Place) -> None:
    place.kept("fit-0.0002", lambda: {"rate": 2e-4, "accuracy": 0.5, "gain": 0.1})
    place.kept("read-plain", lambda: _read((-0.01, -0.03, 0.0), [1.0, 1.0, 0.0, 1.0] * 5))
    told = "\n".join(body(data, [place]))
    assert "+0.200 [+0.100, +0.300] | not inferior |" in told and "did not fall" not in told


def test_a_sweep_of_more_trials_has_rows_of_its_own(place: Place) -> None:
    more = replace(place, recipe=place.recipe.with_values({"study.trials": 12}))
    assert (place.sweep, place.arm("plain"), place.arm("joint")) == ("sweep", "read-plain", "read-joint")
    assert (more.sweep, more.arm("plain"), more.arm("joint")) == ("sweep-12", "read-plain", "read-joint-12")


def _read(change: tuple[float, float, float], values: list[float]) -> dict[str, Any]:
    numbers = dict(zip(("change", "low", "high"), change, strict=True))
    row = {"task": "arithmetic", "measure": "generation", "unit": "share right", "base": 0.9, "adapted": 0.1, "n": 20, **numbers}
    domain = {**row, "measure": "choice_accuracy", "values": values}
    chains = {**row, "task": "gsm8k-chains", "measure": "chain_likelihood", "unit": "nats per token", "low": 0.1, "high": 0.3}
    return {"domain": domain, "pooled": row, "families": [row], "outside": [{**chains, "change": 0.2}]}
