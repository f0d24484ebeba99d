"""Data that a sweep cannot stand on: refused by one sentence before anything is fitted."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import small

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.task import Example
from evaluation.tasks import task_named
from registry.tracking import Tracking
from tuning.batches import rows_of
from tuning.errors import BadRecipe, SweepRefused
from tuning.ground import Ground
from tuning.methods import METHODS
from tuning.plan import training_examples
from tuning.recipe import Recipe
from tuning.study import Sweep
from tuning.usable import check_lengths, check_usable

FRUITS = ("apple", "pear", "plum", "fig")
COLUMNS = {"question": "q", "answer": "a", "choices": "c", "group": "patient"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """120 questions of 40 patients, each with choices and none with a rationale."""
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a", "c", "patient"])
        writer.writeheader()
        for number in range(120):
            fruit = FRUITS[number * 7 % 4]
            writer.writerow({"q": f"Which fruit has number {number}?", "a": fruit, "c": "|".join(FRUITS), "patient": number % 40})
    return tmp_path


def task(folder: Path, name: str, *without: str) -> str:
    """The path of a task over the table, all columns but those named."""
    lines = [f'name = "{name}"', 'file = "data.csv"', "[columns]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in COLUMNS.items() if key not in without]
    (folder / f"{name}.toml").write_text("\n".join(lines))
    return str(folder / f"{name}.toml")


def checked(recipe: Recipe) -> None:
    domain = task_named(recipe.domain)
    check_usable(recipe, domain, training_examples(recipe, domain))


def test_a_protected_task_over_the_rows_that_are_trained_on_is_refused(table: Path) -> None:
    domain = task(table, "mine")
    checked(Recipe(name="x", domain=domain, protected=("boxes", "grammar"), search=("method.steps",)))
    guard = task(table, "guard", "group")
    with pytest.raises(SweepRefused, match=r"measures 'guard' on rows .* \d+ of \d+ do .* Remove one of each pair"):
        checked(Recipe(name="x", domain=domain, protected=("boxes", guard)))


def test_two_tasks_of_one_name_are_refused(table: Path) -> None:
    (table / "other").mkdir()
    (table / "other" / "data.csv").write_bytes((table / "data.csv").read_bytes())
    with pytest.raises(SweepRefused, match="'mine' comes twice"):
        checked(Recipe(name="x", domain=task(table, "mine"), protected=("boxes", task(table / "other", "mine"))))


def test_a_protected_task_that_parts_the_same_rows_alike_is_taken(table: Path) -> None:
    checked(Recipe(name="x", domain=task(table, "mine"), protected=(task(table, "guard"),), search=("method.steps",)))


def test_a_domain_without_choices_is_refused(table: Path) -> None:
    with pytest.raises(SweepRefused, match="scores its domain by choices.*Give the task choices"):
        checked(Recipe(name="x", domain=task(table, "mine", "choices")))


@pytest.mark.parametrize("target", ["rationale", "mixed"])
def test_a_rationale_that_no_row_has_is_refused(table: Path, target: str) -> None:
    recipe = Recipe(name="x", domain=task(table, "mine"), search=("method.steps",), method={"target": target})
    with pytest.raises(SweepRefused, match=f"'{target}' learns a rationale from every row, but .* `rationale` in the task file"):
        checked(recipe)
    checked(recipe.with_values({"method.target": "answer"}))


def test_a_row_without_a_rationale_is_never_fitted_as_one(backbone: Backbone) -> None:
    bare = [Example(id="1", question="What comes after 1?", answer="2", rationale=" \n", group="1")]
    with pytest.raises(DataError, match="1 of 1 rows have none, '1' first"):
        rows_of(backbone, bare, "rationale")
    assert len(rows_of(backbone, bare, "answer")) == 1


def test_a_search_that_may_draw_a_target_without_rows_is_refused_with_what_is_left(table: Path) -> None:
    recipe = Recipe(name="x", domain=task(table, "mine"), search=("method.target",), start=({"method.target": "rationale"},))
    way_out = (
        r"may draw 'rationale' or 'mixed'.*\[ranges\] 'method.target' = \[\"answer\"\], and no \[\[start\]\] that names another"
    )
    with pytest.raises(SweepRefused, match=way_out):
        checked(recipe)
    checked(recipe.with_values({"ranges": {"method.target": ("answer",)}, "start": ()}))
    with pytest.raises(SweepRefused, match="learns a rationale from every row") as refusal:
        checked(recipe.with_values({"ranges": {"method.target": ("rationale", "mixed")}}))
    assert "[ranges]" not in str(refusal.value)


READING = ("sft", "softcot", "rewrite", "star", "rlvr", "sdft", "rlag_grpo", "rlsf")
LESS = {"num_labelled": 8, "max_trace_tokens": 8, "max_new_tokens": 8}


@pytest.mark.parametrize("name", READING)
def test_a_question_that_leaves_no_room_under_any_values_refuses_the_sweep_by_its_name(backbone: Backbone, name: str) -> None:
    rows = [Example(id=str(n), question=f"What is {n}?", answer=str(n), rationale="It is.", group=str(n)) for n in range(12)]
    values = {key: value for key, value in LESS.items() if key in METHODS[name].spec_type.model_fields}
    method, kind = {"name": name, **values}, "lora" if METHODS[name].trains("lora") else "softcot"
    recipe = Recipe(name="x", domain="boxes", protected=("grammar",), method=method, adapter={"kind": kind}, search=())
    check_lengths(recipe, backbone, rows)
    with pytest.raises(SweepRefused, match=r"'long',? has \d+.* leave (it )?out"):
        check_lengths(recipe, backbone, [*rows[:8], replace(rows[8], id="long", question="word " * 600), *rows[9:]])


def test_what_is_too_long_under_some_of_the_searched_values_is_left_to_the_trials(backbone: Backbone) -> None:
    wordy = [Example(id="wordy", question="What is 1?", answer="1", rationale="so\n" * 600, group="1")]
    recipe = Recipe(name="x", domain="boxes", protected=("grammar",), method={"target": "rationale"}, search=("method.target",))
    check_lengths(recipe, backbone, wordy)
    with pytest.raises(SweepRefused, match=r"'wordy', has \d+ and \d+"):
        check_lengths(recipe.with_values({"search": ("method.steps",)}), backbone, wordy)
    longer = Recipe(
        name="x", domain="boxes", protected=("grammar",), method={"name": "rlvr", "max_new_tokens": 500}, search=("method.steps",)
    )
    with pytest.raises(SweepRefused, match="max_new_tokens is 500. Lower it"):
        check_lengths(longer, backbone, wordy)
    check_lengths(longer.with_values({"search": ("method.max_new_tokens",)}), backbone, wordy)


def test_a_sweep_meets_a_question_without_room_before_it_reads_what_the_backbone_can_do(
    table: Path, backbone_directory: Path, tmp_path: Path
) -> None:
    file, read = table / "data.csv", []
    file.write_text(file.read_text().replace("Which fruit", "word " * 600 + "Which fruit"))
    recipe = small(backbone_directory, domain=task(table, "mine"))
    with pytest.raises(SweepRefused, match="of 20 rows do not; the first, '.+', has .* Shorten its question, context"):
        Ground.of(recipe, tmp_path / "cache", read.append)
    assert not read


def test_a_sweep_over_such_data_is_refused_before_its_first_fit(table: Path, backbone_directory: Path, tmp_path: Path) -> None:
    recipe = small(backbone_directory, domain=task(table, "mine", "choices"))
    sweep = Sweep(recipe, tmp_path / "home", Tracking.at(tmp_path / "home"), threads=1)
    events = []
    with pytest.raises(SweepRefused, match="scores its domain by choices"):
        sweep.run(sweep.create(), events.append)
    assert not [event for event in events if event.kind == "fit"]


def test_a_domain_without_training_rows_is_refused_by_its_key(table: Path) -> None:
    toml = Path(task(table, "mine"))
    toml.write_text(toml.read_text().replace("[columns]", "held_out = true\n[columns]"))
    with pytest.raises(SweepRefused, match="'mine' has none: its task file says held_out"):
        checked(Recipe(name="x", domain=str(toml), protected=("boxes",)))


def test_margins_of_a_protected_file_go_by_the_name_in_it(table: Path) -> None:
    guard = Path(task(table, "guard"))
    guard.write_text(guard.read_text().replace("[columns]", "held_out = true\n[columns]"))
    recipe = Recipe(name="x", domain=task(table, "mine"), protected=("boxes", str(guard)))
    with pytest.raises(SweepRefused, match="measures 'guard' on rows"):  # which are the domain's own: the margins were let pass
        checked(recipe.with_values({"evaluation.margins": {"guard": 0.2}, "gate.margins": {"guard": 0.1}}))
    with pytest.raises(SweepRefused, match="'gard' is none. Protected: boxes, guard"):
        checked(recipe.with_values({"evaluation.margins": {"gard": 0.2}}))
    with pytest.raises(BadRecipe, match="a protected family, but got 'gard'"):
        recipe.with_values({"protected": ("boxes",), "evaluation.margins": {"gard": 0.2}})
