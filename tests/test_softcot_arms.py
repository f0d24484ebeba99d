"""The arms of soft thoughts: a gain is the assistant's only above the static arm, and the placeholder learns nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fitted import fitted_softcot
from small_studies import small

from adapters.backbone import Backbone
from engine.profile import Profile
from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.measures.choice import ChoiceAccuracy
from evaluation.tasks import TASKS
from tuning.arms import BACKBONE, PLACEHOLDER, ArmReadings
from tuning.errors import BadRecipe, StudyIsRunning
from tuning.ground import Ground
from tuning.journal import alone_in
from tuning.recipe import Recipe
from tuning.softcot_arms import ASSISTANT, STATIC, SoftCoTArms, arms, reading_plan, study_of

NUM_ITEMS = 60


def read_as(accuracy: Mapping[str, float], seeds: int = 3) -> SoftCoTArms:
    """What arms of these accuracies would read: each item is right by a draw of its own, the same in every arm."""
    domain, family = TASKS["icd10-chapter"], TASKS["boxes"]
    plan = [
        Planned(MEASURES["reasoned_choice"], domain, domain.examples("select", 8), "domain"),
        Planned(MEASURES["chain_likelihood"], family, family.examples("select", 8), "protected"),
    ]
    found = []
    fitted = [(name, seed) for seed in range(seeds) for name in (ASSISTANT, STATIC)]
    for name, seed in [(BACKBONE, 0), (PLACEHOLDER, 0), *fitted]:
        draw = random.Random(seed)
        right = [float(draw.random() < accuracy.get(name, 0.2)) for _ in range(NUM_ITEMS)]
        values = {"reasoned_choice/icd10-chapter": right, "chain_likelihood/boxes": [-0.5] * NUM_ITEMS}
        clusters = {key: [str(index) for index in range(NUM_ITEMS)] for key in values}
        found.append(ArmReadings(name, seed, values, clusters, {key: {} for key in values}, {}))
    return SoftCoTArms.of(found, plan)


def test_a_gain_that_a_static_prompt_has_too_is_not_the_assistants() -> None:
    found = read_as({ASSISTANT: 0.8, STATIC: 0.8})
    assert found.effects["assistant"].change.mean == 0.0 and not found.is_credited
    assert found.effects["learned prompt"].is_gain
    (sentence,) = found.sentences()
    assert "No gain is the assistant's" in sentence and "Credit what there is to a learned prompt" in sentence


def test_a_gain_above_the_static_arm_is_credited() -> None:
    found = read_as({ASSISTANT: 0.9, STATIC: 0.4})
    assert found.is_credited and "The assistant adds to a learned prompt" in found.sentences()[0]
    assert found.accuracies[ASSISTANT] > found.accuracies[STATIC] > found.accuracies[BACKBONE]


def test_an_assistant_below_the_static_arm_is_told_to_go() -> None:
    assert "worse than a learned prompt" in read_as({ASSISTANT: 0.3, STATIC: 0.9}).sentences()[0]


def test_without_any_gain_there_is_none_to_divide_and_one_seed_is_said() -> None:
    said = read_as({}, seeds=1).sentences()
    assert "no gain to divide" in said[1] and "1 training seed(s)" in said[2]


def test_the_placeholder_reads_the_unused_token_itself(backbone: Backbone) -> None:
    ids = backbone.chat_ids("Add 5.")
    with torch.no_grad():
        prompt = Profile((fitted_softcot(backbone, 1),)).scaled(0.0).transform(backbone, ids)
    assert prompt.soft_KH is not None
    places = torch.tensor(prompt.ids[prompt.soft_at : prompt.soft_at + len(prompt.soft_KH)])
    torch.testing.assert_close(prompt.soft_KH, backbone.embeddings(places).detach())


@pytest.fixture
def recipe(backbone_directory: Path) -> Recipe:
    return small(backbone_directory, **{"adapter.kind": "softcot", "adapter.softcot.assistant_layers": 1})


def test_the_arms_are_fitted_read_and_gone_on_with(home: Path, recipe: Recipe) -> None:
    ground, looks = Ground.of(recipe, home / "cache"), iter([False, True])
    study = study_of(recipe, ground, home, num_seeds=1)
    assert study.run(out_of_time=lambda: next(looks)) is None
    done: list[int] = []
    found = study.run(lambda what, count, of: done.append(count))
    assert found is not None and done[0] == 1 and done[-1] == 3
    assert set(found.as_dict()["retention"]) == {ASSISTANT, STATIC, PLACEHOLDER}
    assert (study.directory / "softcot_arms.json").is_file()
    again = study.run()
    assert again is not None and again.as_dict() == found.as_dict()


def test_another_process_does_not_run_the_same_arms(home: Path, recipe: Recipe) -> None:
    study = study_of(recipe, Ground.of(recipe, home / "cache"), home, num_seeds=1)
    with alone_in(study.directory), pytest.raises(StudyIsRunning):
        study.run()
    assert not (study.directory / "arms.jsonl").exists()


def test_arms_are_others_where_what_is_read_is_read_otherwise(
    home: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground.of(recipe, home / "cache")
    before = study_of(recipe, ground, home).directory
    monkeypatch.setitem(MEASURES, "choice_accuracy", ChoiceAccuracy(version=ChoiceAccuracy.version + 1))
    assert study_of(recipe, ground, home).directory != before


def test_several_sets_are_judged_by_what_they_write_together(home: Path, recipe: Recipe) -> None:
    ground = Ground.of(recipe, home / "cache")
    many = recipe.with_values({"search": (), "method.name": "softcot", "adapter.softcot.num_chains": 3})
    assert reading_plan(recipe, ground)[0].measure.name == "reasoned_choice"
    assert reading_plan(many, ground)[0].measure.name == "generation"


def test_what_has_no_such_arms_is_refused(home: Path, recipe: Recipe) -> None:
    ground = Ground.of(recipe, home / "cache")
    for changes in ({"adapter.kind": "lora"}, {"adapter.softcot.static": True}):
        with pytest.raises(BadRecipe, match='Set kind = "softcot" and static = false'):
            arms(recipe.with_values(dict(changes)), ground, [0])
