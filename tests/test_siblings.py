"""Other training seeds: the gate judges the recipe, not one lucky fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from gated_names import NAME, report
from rich.console import Console
from small_releases import random_lora

from adapters.backbone import Backbone
from engine.profile import Profile
from evaluation.tasks import task_named
from registry.errors import PolicyRefused
from registry.gate_report import SeedVerdict
from registry.manifest import file_digest
from registry.policy import Policy, policy_of_report, refuse_laxer
from service.commands.releases import _gate_in_turn
from tuning.gating import Subject, recipe_policy
from tuning.manifest import complete
from tuning.plan import training_examples
from tuning.recipe import Recipe
from tuning.siblings import sibling

PASSED = SeedVerdict(number=1, verdict="pass", sentence="seed +1 passed.")
UNDECIDED = SeedVerdict(number=2, verdict="inconclusive", sentence="seed +2 is undecided.")
FAILED = SeedVerdict(number=2, verdict="fail", sentence="seed +2 failed.")


@pytest.fixture
def subject(backbone: Backbone, tmp_path: Path) -> Subject:
    recipe = Recipe(name="small", backbone=backbone.name, domain="icd10-chapter", protected=("grammar",))
    recipe = recipe.with_values({"method.steps": 1, "method.batch_size": 2, "method.num_examples": 6, "adapter.lora.rank": 2})
    examples = training_examples(recipe, task_named(recipe.domain))
    manifest = complete(tmp_path / "own", recipe, backbone, Profile((random_lora(backbone, 1),)), 0.5, examples)
    return Subject("small@1", tmp_path / "own", manifest)


def test_a_sibling_has_other_seeds_rows_and_weights_and_the_same_scale(
    subject: Subject, backbone: Backbone, tmp_path: Path
) -> None:
    made = sibling(subject, backbone, 2, tmp_path, lambda share: None)
    assert made.recipe.method.seed == subject.recipe.method.seed + 2
    assert made.manifest.profile.scale == 0.5
    assert made.manifest.data_digests != subject.manifest.data_digests
    weights = "adapter_model.safetensors"
    assert file_digest(made.directory / weights) != file_digest(subject.directory / weights)


def test_a_sibling_is_fitted_once(subject: Subject, backbone: Backbone, tmp_path: Path) -> None:
    told: list[float] = []
    first = sibling(subject, backbone, 1, tmp_path, told.append)
    count = len(told)
    again = sibling(subject, backbone, 1, tmp_path, told.append)
    assert count > 0 and len(told) == count and again.directory == first.directory


@pytest.mark.parametrize(
    ("seeds", "verdict"), [([PASSED], "pass"), ([PASSED, UNDECIDED], "inconclusive"), ([PASSED, FAILED], "fail")]
)
def test_a_recipe_passes_only_where_every_fit_of_it_passes(seeds: list[SeedVerdict], verdict: str) -> None:
    made = report(1).with_seeds(seeds)
    assert made.verdict == verdict
    assert (seeds[-1].sentence in made.sentence) == (verdict != "pass")
    assert [row[:2] for row in made.rows()[-len(seeds) :]] == [(f"training seed +{s.number}", s.verdict) for s in seeds]


def test_a_pass_under_several_seeds_is_one_sentence() -> None:
    said = report(1).with_seeds([PASSED, PASSED]).sentence
    assert said.endswith(" within the margins, under each of 3 training seeds.") and said.count(". ") == 0


def test_siblings_are_fitted_and_gated_until_one_does_not_pass(subject: Subject) -> None:
    lost = report(2, lost=0.5)
    reports = iter([report(1), lost, report(1)])
    found = _gate_in_turn([subject] * 3, lambda sibling: next(reports), Console(stderr=True))
    assert [(seed.number, seed.verdict) for seed in found] == [(1, "pass"), (2, "fail")]
    assert found[1].sentence == lost.sentence and next(reports).passed


def test_a_report_on_too_few_fits_promotes_nothing() -> None:
    recipe = Recipe(name="small", backbone="b", domain="icd10", protected=("boxes",))
    bound: Policy = recipe_policy(recipe.with_values({"gate.training_seeds": 3}))
    with pytest.raises(PolicyRefused, match="training_seeds"):
        refuse_laxer(policy_of_report(report(1).with_seeds([PASSED]), bound), bound, NAME)
    refuse_laxer(policy_of_report(report(1).with_seeds([PASSED, PASSED]), bound), bound, NAME)
