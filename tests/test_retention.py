"""What a protected task of a user's own is guarded by, in a sweep and at the gate."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from toy_engine import Mind, ToyEngine

from adapters.backbone import Backbone
from engine.engine import Continuation
from evaluation.admission import admissions
from evaluation.errors import DataError
from evaluation.evaluate import evaluate
from evaluation.retention import gate_measure, is_written, search_measure
from evaluation.task import SPLITS, Task, answer_line
from evaluation.tasks import task_named
from tuning.plan import generated_plan, likelihood_plan
from tuning.queries import family_query
from tuning.recipe import Recipe

WORDS = ("apple", "pear", "plum", "fig", "cherry", "quince", "lemon")


def own(folder: Path, count: int = 400, guard: str | None = None, **columns: str) -> Path:
    """A task's TOML over rows with an answer; `rationale` and `choices` are read where they are named."""
    rows = [
        {
            "q": f"How many {WORDS[index % 7]} trees stand in garden {index}?",
            "a": str(index),
            "why": f"Garden {index} has its number.\n{index} {WORDS[index % 7]} trees.",
            "options": [str(index), str(index + 1)],
        }
        for index in range(count)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = {"question": "q", "answer": "a", **columns}
    lines = ['name = "gardens"', 'file = "rows.jsonl"', *([f'guard = "{guard}"'] if guard else []), "[columns]"]
    (folder / "gardens.toml").write_text("\n".join([*lines, *(f'{key} = "{value}"' for key, value in named.items())]))
    return folder / "gardens.toml"


@pytest.mark.parametrize(
    ("columns", "guard", "search", "gate", "written"),
    [
        ({"rationale": "why"}, None, "chain_likelihood", "generation", True),
        ({"rationale": "why", "choices": "options"}, None, "chain_likelihood", "choice_accuracy", False),
        ({"choices": "options"}, None, "choice_accuracy", "choice_accuracy", False),
        ({}, None, "generation", "generation", True),
        ({"rationale": "why"}, "likelihood", "chain_likelihood", "chain_likelihood", False),
        ({"rationale": "why", "choices": "options"}, "likelihood", "chain_likelihood", "chain_likelihood", False),
    ],
)
def test_a_task_is_guarded_by_what_its_rows_hold(
    tmp_path: Path, columns: dict[str, str], guard: str | None, search: str, gate: str, written: bool
) -> None:
    task = task_named(str(own(tmp_path, guard=guard, **columns)))
    assert (search_measure(task).name, gate_measure(task).name, is_written(task)) == (search, gate, written)


def test_a_guard_by_likelihood_needs_a_rationale_in_every_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reads the gold chain, but .columns. names no rationale"):
        task_named(str(own(tmp_path, guard="likelihood")))
    toml = own(tmp_path, guard="likelihood", rationale="why")
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text().replace('"Garden 3 has its number.\\n3 fig trees."', "null"))
    with pytest.raises(DataError, match="Column 'why' must have a value in every row, but line 4"):
        task_named(str(toml))


@pytest.mark.parametrize("columns", [{"choices": "options"}, {"rationale": "why"}])
def test_a_sweep_reads_a_protected_task_of_ones_own_file_and_sees_damage(
    backbone: Backbone, tmp_path: Path, columns: dict[str, str]
) -> None:
    toml = own(tmp_path, guard="likelihood" if "rationale" in columns else None, **columns)
    recipe = Recipe(name="x", domain="boxes", protected=(str(toml),)).with_values({"evaluation.chain_items": 16})
    planned = likelihood_plan(recipe, task_named("boxes"))[1:]
    assert [(p.task.name, p.role, len(p.examples)) for p in planned] == [("gardens", "protected", 16)]
    assert not generated_plan(recipe)
    engine = ToyEngine(backbone, planned[0].examples)
    engine.think("kept", Mind())
    engine.think("harmed", Mind(certainty=0.02, solves=False, reads_steps=False))
    kept, harmed = (evaluate(engine, backbone, name, planned).rows[0].change for name in ("kept", "harmed"))
    assert kept.mean == 0.0 and harmed.high < 0.0


def test_a_task_by_likelihood_is_admitted_where_its_own_chains_are_told_from_others(backbone: Backbone, tmp_path: Path) -> None:
    task = task_named(str(own(tmp_path, count=1200, guard="likelihood", rationale="why")))
    examples = task.examples("search", 96, seed=5)
    found = admissions(ToyEngine(backbone, examples), backbone, [task], tmp_path / "one")[task.name]
    assert found.admitted and (found.measure, found.chance, found.n) == ("chain_likelihood", None, 96)


class Blind(ToyEngine):
    """What it expects of a chain has nothing to do with the problem."""

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        drawn = [random.Random(str(asked.ids)) for asked in continuations]
        return [tuple(-1.0 - one.random() for _ in asked.ids) for one, asked in zip(drawn, continuations, strict=True)]


def test_a_backbone_that_tells_no_chain_from_another_is_not_measurable(backbone: Backbone, tmp_path: Path) -> None:
    task = task_named(str(own(tmp_path, count=1200, guard="likelihood", rationale="why")))
    found = admissions(Blind(backbone, task.examples("search", 96, seed=5)), backbone, [task], tmp_path / "two")[task.name]
    assert not found.admitted and any("not more than 5 standard errors" in reason for reason in found.reasons)


def test_all_rows_of_two_files_are_read_and_only_those_that_are_asked_for(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = [
            {"q": f"{name} {index}?", "a": "AB"[index % 2], "o": ["yes", "no"], "kind": "kn"[index % 3 > 0]}
            for index in range(90)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = ['name = "both"', 'file = ["one.jsonl", "two.jsonl"]', 'answers = "letter"', 'where = {kind = ["n"]}', "[columns]"]
    toml = tmp_path / "both.toml"
    toml.write_text("\n".join([*lines, 'question = "q"', 'answer = "a"', 'choices = "o"']))
    task = task_named(str(toml))
    found = _all(task)
    assert len(found) == len(set(found)) == 120
    assert found["one 1?"] == "no" and found["two 2?"] == "yes" and "one 0?" not in found
    toml.write_text(toml.read_text().replace('"n"', '"no such kind"'))
    with pytest.raises(DataError, match="got none"):
        task_named(str(toml))


def test_a_letter_without_a_choice_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{"q": f"{index}?", "a": "ABC"[index % 3], "o": ["yes", "no"]} for index in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    toml = tmp_path / "t.toml"
    toml.write_text(
        'name = "t"\nfile = "rows.jsonl"\nanswers = "letter"\n[columns]\nquestion = "q"\nanswer = "a"\nchoices = "o"\n'
    )
    with pytest.raises(DataError, match="letter of one of the choices, but line 3 of .* has the answer 'C' and 2 choices"):
        task_named(str(toml))


def _all(task: Task) -> dict[str, str]:
    return {example.question: example.answer for split in SPLITS for example in task.examples(split, 1000)}


def test_influence_on_a_task_of_ones_own_is_asked_about_where_it_has_a_likelihood(backbone: Backbone, tmp_path: Path) -> None:
    task = task_named(str(own(tmp_path, choices="options")))
    examples = task.examples("search", 2)
    found = family_query(backbone, task, examples)
    told = [backbone.decode(one.row.completion_ids) for one in found]
    assert all(answer_line(example.answer) in text for text, example in zip(told, examples, strict=True)) and len(told) == 2
    with pytest.raises(DataError, match="'gardens' has neither gold chains nor choices"):
        family_query(backbone, task_named(str(own(tmp_path))), examples)
