"""A candidate keeps the champion's decoding policy: the same weights, other served values, and a manifest that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shelves import recipe_of, write_task
from small_releases import random_lora

from adapters.backbone import Backbone
from adapters.files import load_adapters
from engine.decoding.budget import Budget
from engine.profile import DecodingPolicy, Profile
from evaluation.tasks import task_named
from registry.errors import DamagedRelease
from registry.manifest import CARD, MANIFEST, TrainingHashes, verify
from tuning.manifest import complete
from tuning.new_data.carried import carried

POLICY = DecodingPolicy(temperature=0.3, budget=Budget(max_trace_tokens=12))


@pytest.fixture
def fitted(backbone: Backbone, tmp_path: Path) -> Path:
    toml = write_task(tmp_path / "task", 60)
    recipe, examples = recipe_of(backbone, toml), task_named(str(toml)).examples("train", 8)
    complete(tmp_path / "fitted", recipe, backbone, Profile((random_lora(backbone, 1),)).scaled(0.5), 0.5, examples)
    return tmp_path / "fitted"


def test_the_weights_are_the_fits_and_the_policy_the_champions(fitted: Path, tmp_path: Path) -> None:
    made = carried(fitted, POLICY, tmp_path / "candidate")
    assert made == tmp_path / "candidate" and Profile.load(made).policy == POLICY
    [one], [other] = load_adapters(fitted), load_adapters(made)
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)  # type: ignore[attr-defined]
    assert all(torch.equal(here, there) for here, there in pairs)
    before, now = verify(fitted), verify(made)
    assert now.profile.decoding == POLICY.model_dump(mode="json") != before.profile.decoding
    assert now.profile.scale == before.profile.scale == 0.5 and TrainingHashes.read(made) == TrainingHashes.read(fitted)
    told = {"files": {}, "profile": before.profile}
    assert now.model_copy(update=told) == before.model_copy(update=told)
    assert {name for name in now.files if now.files[name] != before.files[name]} <= {"profile.json", CARD}


def test_where_the_policies_are_one_the_fit_itself_is_the_candidate(fitted: Path, tmp_path: Path) -> None:
    assert carried(fitted, DecodingPolicy(), tmp_path / "candidate") == fitted and not (tmp_path / "candidate").exists()


def test_what_was_carried_before_is_not_written_again(fitted: Path, tmp_path: Path) -> None:
    made = carried(fitted, POLICY, tmp_path / "candidate")
    before = (made / MANIFEST).stat().st_mtime_ns
    assert carried(fitted, POLICY, tmp_path / "candidate") == made and (made / MANIFEST).stat().st_mtime_ns == before


def test_a_damaged_fit_leaves_nothing(fitted: Path, tmp_path: Path) -> None:
    (fitted / CARD).write_text("another")
    with pytest.raises(DamagedRelease):
        carried(fitted, POLICY, tmp_path / "candidate")
    assert not list(tmp_path.glob("*candidate*"))
