"""The gate's items: rounds that are always cut the same, and enough of them to show that nothing was lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import Overlap
from evaluation.evaluate import Planned
from evaluation.overlap import Fingerprints
from evaluation.retention import gate_measure
from evaluation.task import Task
from evaluation.tasks import TASKS, task_named
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems, log_wealth
from tuning.gating import gate_settings
from tuning.recipe import Recipe
from tuning.rounds import Rounds, is_endless, parts_of

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
NOTHING = Fingerprints.of([])


def shows_no_loss(settings: GateSettings, task: Task) -> bool:
    """Whether differences of exactly 0 pass the task's test within the gate's rounds."""
    rounds, wealth, needed = Rounds(task, settings.round_items, 7, NOTHING), 0.0, -np.log(settings.candidate_alpha)
    drawn = PairedItems.of([], [], [], fixed_clusters=is_endless(task))
    for number in range(settings.max_rounds):
        items = rounds.items(number)
        if not items:
            break
        zeros = np.zeros(len(items))
        fresh = PairedItems.of(zeros, zeros, [item.group for item in items], fixed_clusters=is_endless(task))
        drawn = drawn.joined(fresh)
        wealth = log_wealth(drawn.units, -settings.margin_of(task.name), settings.span_of(task.name))
        if wealth >= needed:
            return True
    return False


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_an_adapter_that_changes_nothing_loses_nothing_at_the_gate_of_every_recipe(file: Path) -> None:
    recipe = Recipe.load(file)
    settings = gate_settings(recipe, num_candidates=recipe.gate.candidates)
    unpassable = [name for name in recipe.protected if not shows_no_loss(settings, task_named(name))]
    assert not unpassable


def test_a_margin_that_the_gate_split_is_too_small_for_is_seen() -> None:
    settings = gate_settings(Recipe(name="x", domain="icd10", gate={"nats_margin": 0.02}), num_candidates=3)
    assert not shows_no_loss(settings, TASKS["text"])


@pytest.mark.parametrize(("name", "size"), [("icd10", 150), ("text", 20), ("grammar", 40), ("boxes", 20)])
def test_a_gate_that_goes_on_reads_no_item_again_and_moves_none(name: str, size: int) -> None:
    straight, later = Rounds(TASKS[name], size, 3, NOTHING), Rounds(TASKS[name], size, 3, NOTHING)
    read = [straight.items(number) for number in range(2)]
    going_on = [later.items(number) for number in (2, 3)]
    assert going_on == [straight.items(number) for number in (2, 3)]
    before = {item.question for items in read for item in items}
    assert going_on[0] and not before & {item.question for items in going_on for item in items}
    if not is_endless(TASKS[name]):
        groups = [{item.group for item in items} for items in (*read, *going_on)]
        assert sum(map(len, groups)) == len(set().union(*groups))


@pytest.mark.parametrize("name", ["text", "icd10-chapter"])
def test_a_training_row_among_the_items_of_any_task_that_is_finite_stops_the_gate(name: str) -> None:
    leaked = Fingerprints.of(Rounds(TASKS[name], 20, 3, NOTHING).items(1)[:1])
    with pytest.raises(Overlap):
        Rounds(TASKS[name], 20, 3, leaked)


def test_a_problem_that_was_trained_on_is_no_item_of_the_gate() -> None:
    drawn = Rounds(TASKS["boxes"], 20, 3, NOTHING).items(0)
    leaked = Fingerprints.of(drawn[:2])
    assert Rounds(TASKS["boxes"], 20, 3, leaked).items(0) == drawn[2:]


def test_what_is_written_is_read_together_and_every_other_measure_alone() -> None:
    def planned(name: str, count: int) -> Planned:
        task = TASKS[name]
        return Planned(gate_measure(task), task, task.examples("gate", count), "protected")

    small = [planned(name, 20) for name in ("text", "boxes", "kinship", "grammar", "arithmetic")]
    assert [[p.task.name for p in part] for part in parts_of(small)] == [
        ["text"],
        ["grammar"],
        ["boxes", "kinship", "arithmetic"],
    ]
    large = [planned(name, 100) for name in ("boxes", "kinship", "arithmetic")]
    assert [[p.task.name for p in part] for part in parts_of(large)] == [["boxes", "kinship"], ["arithmetic"]]


def test_a_training_row_among_minimal_pairs_stops_the_gate() -> None:
    leaked = Fingerprints.of(Rounds(TASKS["grammar"], 20, 3, NOTHING).items(0)[:1])
    with pytest.raises(Overlap):
        Rounds(TASKS["grammar"], 20, 3, leaked).items(0)
