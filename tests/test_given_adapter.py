"""A trial that reads an adapter as it is, without a fit."""

from __future__ import annotations

from pathlib import Path

from small_releases import random_lora

from engine.profile import Profile
from registry.manifest import verify
from tuning.batches import Row
from tuning.distance import distance
from tuning.ground import Ground
from tuning.recipe import Recipe
from tuning.trial import ADAPTER, Job, _fit_and_measure


def test_a_given_adapter_is_read_at_every_scale_and_nothing_is_fitted_or_kept(
    home: Path, ground: Ground, recipe: Recipe, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    Profile((random_lora(ground.backbone, 1),)).save(given)
    job = Job(recipe, tmp_path / "trial", home / "cache", 1, given=given)
    outcome = _fit_and_measure(job, ground, lambda phase, share: None, None)
    assert outcome.state == "complete" and outcome.fit["num_tokens"] == 0 and not outcome.fit["numbers"]
    half, whole = outcome.score["scales"]
    assert 0 < half["forward_kl"] < whole["forward_kl"]
    assert outcome.score["forward_kl"] == outcome.score["chosen"]["forward_kl"]
    assert not (job.directory / ADAPTER).exists()


def test_what_is_left_behind_has_the_chosen_scale_unless_it_is_wanted_as_fitted(
    home: Path, ground: Ground, recipe: Recipe, tmp_path: Path
) -> None:
    halved, far = recipe.with_values({"study.scales": (0.5,), "method.steps": 2}), list[float]()
    rows = [Row(tuple(range(5, 25)), tuple(range(25, 45)))]
    for as_fitted in (False, True):
        job = Job(halved, tmp_path / f"trial-{as_fitted}", home / "cache", 1, keep_as_fitted=as_fitted)
        assert _fit_and_measure(job, ground, lambda phase, share: None, None).score["chosen"]["scale"] == 0.5
        assert verify(job.directory / ADAPTER).profile.scale == (1.0 if as_fitted else 0.5)
        far.append(distance(ground.backbone, Profile.load(job.directory / ADAPTER).adapters, rows))
    assert 0 < far[0] < 0.5 * far[1]
