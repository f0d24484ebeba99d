"""Trace reliance: who copies the answer must not seem to rely on traces, and who reads them must."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.measures.choice import ChoiceAccuracy
from evaluation.tasks import TASKS
from tuning.arms import BACKBONE, ArmReadings
from tuning.errors import StudyIsRunning
from tuning.ground import Ground
from tuning.journal import alone_in
from tuning.recipe import Recipe
from tuning.trace_reliance import ARMS, TraceReliance, arms, study_of

NUM_ITEMS = 60


def read_as(
    recipe: Recipe, accuracy: Mapping[str, float], kept: Mapping[str, float] | None = None, seeds: int = 3
) -> TraceReliance:
    """What arms of these accuracies would read: each item is right by a draw of its own, the same in every arm."""
    domain, family = TASKS["icd10-chapter"], TASKS["boxes"]
    recipe = recipe.with_values({"protected": ("boxes",)})
    plan = [
        Planned(MEASURES["reasoned_choice"], domain, domain.examples("select", 8), "domain"),
        Planned(MEASURES["chain_likelihood"], family, family.examples("select", 8), "protected"),
    ]
    found = []
    for name, seed in [(BACKBONE, 0), *((name, seed) for seed in range(seeds) for name in ARMS)]:
        draw = random.Random(seed)
        right = [float(draw.random() < accuracy.get(name, 0.2)) for _ in range(NUM_ITEMS)]
        chains = [-0.5 + (kept or {}).get(name, 0.0) + 0.01 * draw.random() for _ in range(NUM_ITEMS)]
        values = {"reasoned_choice/icd10-chapter": right, "chain_likelihood/boxes": chains}
        clusters = {key: [str(index) for index in range(NUM_ITEMS)] for key in values}
        parts = {"reasoned_choice/icd10-chapter": {"step_validity": float("nan"), "trace_tokens": 9.0}}
        found.append(ArmReadings(name, seed, values, clusters, parts, {"num_tokens": 100.0}))
    return TraceReliance.of(found, recipe, plan)


def test_who_copies_the_answer_whatever_the_trace_says_does_not_rely_on_it(recipe: Recipe) -> None:
    copier = read_as(recipe, dict.fromkeys(ARMS, 0.7), {"N": -0.2, "W": -0.2, "F": -0.1, "A": -0.05})
    assert copier.effects["reliance"].change.mean == 0.0 and copier.is_scaffolding
    (sentence,) = copier.sentences()
    assert "Do not report trace quality as evidence of reasoning" in sentence
    assert "prefer the arm with the best retention (A, answers only)" in sentence


def test_who_computes_from_the_trace_relies_on_it(recipe: Recipe) -> None:
    reader = read_as(recipe, {"N": 0.9, "W": 0.3, "F": 0.4, "A": 0.4})
    assert reader.effects["reliance"].is_gain and not reader.is_scaffolding
    assert reader.effects["compute"].change.mean == 0.0
    assert reader.effects["form"].change.mean < 0
    assert "rely on what their traces say" in reader.sentences()[0]


def test_swapped_traces_that_cost_retention_at_the_same_accuracy_are_named(recipe: Recipe) -> None:
    found = read_as(recipe, dict.fromkeys(ARMS, 0.7), {"W": -0.1})
    assert found.swapped_chains.is_loss
    assert any("Garbage traces cost general reasoning" in sentence for sentence in found.sentences())
    assert not any("Garbage" in sentence for sentence in read_as(recipe, dict.fromkeys(ARMS, 0.7)).sentences())


def test_swapped_traces_that_do_better_are_not_called_reliance(recipe: Recipe) -> None:
    found = read_as(recipe, {"N": 0.3, "W": 0.9, "F": 0.4, "A": 0.4})
    assert "Swapped traces do better" in found.sentences()[0]


def test_one_seed_is_said_to_be_one_seed(recipe: Recipe) -> None:
    assert "1 training seed(s)" in read_as(recipe, dict.fromkeys(ARMS, 0.5), seeds=1).sentences()[-1]


def test_arms_share_rows_answers_steps_and_the_prompt_and_differ_in_their_traces(
    backbone: Backbone, ground: Ground, recipe: Recipe
) -> None:
    found = {arm.name: arm for arm in arms(ground, recipe.method, [0])}
    assert list(found) == list(ARMS)
    for arm in found.values():
        assert [(row.id, row.answer) for row in arm.examples] == [(row.id, row.answer) for row in ground.examples]
        assert (arm.method.steps, arm.method.prompt) == (recipe.method.steps, "reasoning")
    assert [found[name].method.target for name in "NWFA"] == ["rationale"] * 3 + ["answer"]
    total = {name: sum(len(backbone.encode(row.chain)) for row in found[name].examples) for name in "NWF"}
    assert total["N"] == total["W"] == total["F"]


def test_arms_can_be_fitted_without_loss_on_the_trace(ground: Ground, recipe: Recipe) -> None:
    found = arms(ground, recipe.method, [0], trace_loss=False)
    assert [arm.method.trace_loss for arm in found[:3]] == [False] * 3


def test_rows_without_traces_have_nothing_to_swap(ground: Ground, recipe: Recipe) -> None:
    bare = replace(ground, examples=[replace(row, rationale=None) for row in ground.examples])
    with pytest.raises(DataError, match="learns a rationale from every row, but 20 of 20 rows have none"):
        arms(bare, recipe.method, [0])


def test_a_study_is_another_where_what_is_read_is_read_otherwise(
    ground: Ground, recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = study_of(recipe, ground, home).directory
    assert study_of(recipe, ground, home).directory == before
    monkeypatch.setitem(MEASURES, "choice_accuracy", ChoiceAccuracy(version=ChoiceAccuracy.version + 1))
    assert study_of(recipe, ground, home).directory != before


def test_two_processes_do_not_run_one_study(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(StudyIsRunning, match=f"process {os.getpid()} runs the one in"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "relies"), [("arithmetic", True), ("copied", False)])
def test_on_the_reasoner_sums_rely_on_their_traces_and_copied_answers_do_not(tmp_path: Path, domain: str, relies: bool) -> None:
    file = tmp_path / "copied.toml"
    file.write_text(
        'name = "copied"\nfile = "rows.jsonl"\n[columns]\n' + 'question = "q"\nanswer = "a"\nchoices = "c"\nrationale = "r"\n'
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(copied(number)) for number in range(400)))
    recipe = Recipe(
        name="reliance",
        domain=domain if domain == "arithmetic" else str(file),
        protected=("ordering",),
        method={"steps": 15, "batch_size": 8, "learning_rate": 1e-3, "num_examples": 120},
        evaluation={"domain_items": 24, "chain_items": 8, "generated_items": 0},
    )
    ground = Ground.of(recipe, tmp_path / "cache")
    found = study_of(recipe, ground, tmp_path, num_seeds=1).run()
    assert found is not None
    assert found.is_scaffolding != relies, found.sentences()
    assert found.effects["reliance"].is_gain == relies


def copied(number: int) -> dict[str, object]:
    """A row whose question says the answer, beside a rationale that is of no use."""
    rng = random.Random(number)
    colours = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
    colour, first, second = rng.choice(colours), rng.randrange(10, 90), rng.randrange(10, 90)
    return {
        "q": f"The label of parcel {number} is {colour}. Which label has parcel {number}?",
        "a": colour,
        "c": colours,
        "r": f"{first} + {second} = {first + second}",
    }


def test_a_study_goes_on_arm_by_arm_and_tells_the_same(ground: Ground, home: Path, recipe: Recipe) -> None:
    study = study_of(recipe, ground, home, num_seeds=1)
    looks = iter([False, True])
    assert study.run(out_of_time=lambda: next(looks)) is None
    found = study.run()
    assert found is not None and set(found.accuracies) == set(ARMS)
    assert set(found.retention["N"]) >= {"chain_likelihood/arithmetic", "chain_likelihood/ordering"}
    assert found.fit_tokens["A"] < found.fit_tokens["N"]
    assert (study.directory / "trace_reliance.json").is_file()
    again = study_of(recipe, ground, home, num_seeds=1).run()
    assert again is not None and again.as_dict() == found.as_dict()
