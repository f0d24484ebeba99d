"""A trial that reads an adapter as it is, without a fit."""

from __future__ import annotations

from pathlib import Path

from small_releases import random_lora

from engine.profile import Profile
from tuning.ground import Ground
from tuning.recipe import Recipe
from tuning.trial import ADAPTER, Job, _fit_and_measure


def test_a_given_adapter_is_read_at_every_scale_and_nothing_is_fitted_or_kept(
    home: Path, ground: Ground, recipe: Recipe, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    Profile((random_lora(ground.backbone, 1),)).save(given)
    job = Job(recipe, tmp_path / "trial", home / "cache", 1, given=given)
    outcome = _fit_and_measure(job, ground, lambda phase, share: None)
    assert outcome.state == "complete" and outcome.fit["num_tokens"] == 0 and not outcome.fit["numbers"]
    half, whole = outcome.score["scales"]
    assert 0 < half["forward_kl"] < whole["forward_kl"]
    assert outcome.score["forward_kl"] == outcome.score["chosen"]["forward_kl"]
    assert not (job.directory / ADAPTER).exists()
