"""Studies and gates fit as a trial does: in as many processes as the recipe says, on the rows that they prepared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_studies import small

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from adapters.lora import WEIGHTS
from adapters.softcot import SoftCoT
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.task import Example
from evaluation.tasks import task_named
from tuning import fit_process
from tuning.arms import ArmBench
from tuning.attribution import Attribution, AttributionSpec
from tuning.checkpoints import Checkpoint
from tuning.gating import Subject
from tuning.ground import Ground
from tuning.journal import Journal
from tuning.laid_out import FITTED, Fitted, at_hand, fitted_on
from tuning.launch import ASKED, FIT, AskedFit
from tuning.loop import OnStep
from tuning.manifest import complete
from tuning.methods.method import Fit
from tuning.plan import training_examples
from tuning.recipe import Recipe
from tuning.removal import reading_plan
from tuning.reproduce import reproduce
from tuning.siblings import sibling
from tuning.softcot_arms import arms


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[AskedFit]:
    """What was asked of launched processes; one runs, in this very process, and reads what it would read under a launcher."""
    seen: list[AskedFit] = []

    def launched(
        recipe: Recipe,
        directory: Path,
        threads: int,
        on_step: OnStep | None = None,
        examples: Sequence[Example] | None = None,
        checkpoints: Mapping[int, Path] | None = None,
    ) -> Fit:
        place = tmp_path / f"launched-{len(seen)}"
        place.mkdir()
        rows = None if examples is None else tuple(examples)
        seen.append(
            AskedFit(
                recipe=recipe.model_dump(mode="json"),
                directory=directory,
                threads=threads,
                waiting=os.getpid(),
                examples=rows,
                checkpoints=dict(checkpoints or {}),
            )
        )
        (place / ASKED).write_text(seen[-1].model_dump_json())
        assert fit_process.main(place) == 0, (place / "failed.json").read_text()
        return Fit.of(json.loads((place / FIT).read_text()))

    monkeypatch.setattr("tuning.laid_out.launched", launched)
    monkeypatch.setattr(fit_process, "end_with", lambda process: None)
    return seen


def lora_recipe(backbone_directory: Path, **changes: object) -> Recipe:
    return small(backbone_directory, **{"adapter.kind": "lora", "method.learning_rate": 1e-2, **changes})


def weights(fitted: Fitted, directory: Path) -> dict[str, torch.Tensor]:
    Profile(fitted.adapters).save(directory)
    return load_file(directory / WEIGHTS)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    pairs = [*zip(one.parameters, other.parameters, strict=True), *zip(one.second_moments, other.second_moments, strict=True)]
    return one.step == other.step and one.learning_rate == other.learning_rate and all(torch.equal(a, b) for a, b in pairs)


def test_rows_that_are_at_hand_are_fitted_alike_and_their_checkpoints_come_back(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path, asked: list[AskedFit]
) -> None:
    recipe = lora_recipe(backbone_directory)
    rows = [replace(row, rationale="a\nb") for row in task_named(recipe.domain).examples("train", 6)]
    here = fitted_on(recipe, backbone, rows, checkpoints=(1, 2))
    two = recipe.with_values({"fit.processes": 2})
    there = fitted_on(two, backbone, rows, checkpoints=(1, 2), directory=tmp_path / "own")
    assert asked[0].examples == tuple(rows) and asked[0].threads == 1
    one, other = weights(here, tmp_path / "here"), weights(there, tmp_path / "there")
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert all(map(same, here.checkpoints, there.checkpoints)) and [taken.step for taken in there.checkpoints] == [1, 2]
    assert there.fit.losses == here.fit.losses
    assert not (tmp_path / "own" / FITTED).exists()
    others = fitted_on(two, backbone, rows[::-1])
    assert others.fit.losses != there.fit.losses, "other rows are another fit"


@pytest.mark.slow
def test_arms_are_launched_each_with_its_own_rows_seed_and_changes(
    home: Path, backbone: Backbone, backbone_directory: Path, tmp_path: Path, asked: list[AskedFit]
) -> None:
    recipe = lora_recipe(backbone_directory, **{"adapter.kind": "softcot"})
    ground = Ground.of(recipe, home / "cache")
    found = {}
    for processes in (1, 2):
        laid_out = recipe.with_values({"fit.processes": processes})
        journal = Journal(tmp_path / f"{processes}.jsonl")
        cache = BaseCache(tmp_path / "base", "float32")
        plan = reading_plan(recipe, ground)[:1]
        bench = ArmBench(laid_out, backbone, TorchEngine(backbone, precision="float32"), plan, cache, journal)
        found[processes] = [(one.name, one.seed, one.values) for one in bench.run(arms(laid_out, ground, [3]))]
    assert found[1] == found[2]
    recipes = [Recipe(**one.recipe) for one in asked]
    assert [(one.adapter.softcot.static, one.adapter.softcot.seed, one.method.seed) for one in recipes] == [
        (False, 3, 3),
        (True, 3, 3),
    ]


@pytest.mark.slow
def test_an_attribution_reads_the_checkpoints_of_a_launched_fit(
    home: Path, backbone_directory: Path, tmp_path: Path, asked: list[AskedFit]
) -> None:
    recipe = lora_recipe(backbone_directory)
    spec = AttributionSpec(rows=10, queries=1, checkpoints=2, dims=64)
    found = []
    for processes in (1, 2):
        laid_out = recipe.with_values({"fit.processes": processes})
        done = Attribution(laid_out, spec, Ground.of(laid_out, home / "cache"), tmp_path / str(processes)).run(check=False)
        assert done is not None
        found.append([asdict(one) for one in done.influences])
    assert found[0] == found[1] and len(asked) == 1


@pytest.fixture
def subject(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> Subject:
    """Fitted with a config file that is not on this machine."""
    recipe = lora_recipe(backbone_directory, **{"fit.processes": 2, "fit.accelerate": "/elsewhere/fsdp.yaml"})
    rows = training_examples(recipe, task_named(recipe.domain))
    adapters = fitted_on(recipe.with_values({"fit.processes": 1, "fit.accelerate": None}), backbone, rows).adapters
    manifest = complete(tmp_path / "own", recipe, backbone, Profile(adapters), 1.0, rows)
    return Subject("small@1", tmp_path / "own", manifest)


def test_a_sibling_and_a_reproduction_are_launched_and_need_no_config_file_of_another_machine(
    subject: Subject, backbone: Backbone, tmp_path: Path, asked: list[AskedFit]
) -> None:
    shares: list[float] = []
    made = sibling(subject, backbone, 1, tmp_path, shares.append)
    again = reproduce(subject, backbone, TorchEngine(backbone), tmp_path / "again")
    assert [one.recipe["fit"] for one in asked] == [at_hand(subject.recipe).fit.model_dump(mode="json")] * 2
    assert [one.recipe["method"]["seed"] for one in asked] == [1, 0]
    assert made.recipe.fit == subject.recipe.fit and again.nearness.bit_equal
    assert sorted(place.name for place in (tmp_path / "again").iterdir()) == ["adapter", "lock"]


def test_a_config_file_that_is_here_is_followed(tmp_path: Path, backbone_directory: Path) -> None:
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\n")
    recipe = lora_recipe(backbone_directory, **{"fit.accelerate": str(tmp_path / "fsdp.yaml")})
    assert at_hand(recipe) is recipe


def test_what_is_read_from_thoughts_needs_no_file_after_it_was_launched(
    backbone: Backbone, backbone_directory: Path, asked: list[AskedFit]
) -> None:
    recipe = lora_recipe(backbone_directory, **{"adapter.kind": "softcot", "fit.processes": 2})
    fitted = fitted_on(recipe, backbone, training_examples(recipe, task_named(recipe.domain)))
    (softcot,) = fitted.adapters
    assert isinstance(softcot, SoftCoT) and not asked[0].directory.exists()
    with torch.no_grad():
        prompt = softcot.transform(backbone, Prompt(backbone.chat_ids("?")))
    assert prompt.soft_KH is not None


def test_a_sibling_of_what_was_fitted_in_four_bits_is_too_whatever_its_gate_measures_on(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, loaded = lora_recipe(backbone_directory, backbone_format="nf4"), list[str]()

    def held(recipe: Recipe) -> Backbone:
        loaded.append(recipe.backbone_format)
        return replace(backbone, format=recipe.backbone_format)

    monkeypatch.setattr("tuning.laid_out.backbone_of", held)
    rows = training_examples(recipe, task_named(recipe.domain))
    adapters = fitted_on(recipe, backbone, rows).adapters
    manifest = complete(tmp_path / "own", recipe, backbone, Profile(adapters), 1.0, rows)
    made = sibling(Subject("small@1", tmp_path / "own", manifest), backbone, 1, tmp_path, lambda share: None)
    assert loaded == ["nf4", "nf4"] and made.manifest.backbone.format == manifest.backbone.format == "nf4"


@pytest.mark.slow
def test_two_processes_fit_prepared_rows_as_one_does_and_leave_their_checkpoints(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path
) -> None:
    recipe = lora_recipe(backbone_directory, **{"method.batch_size": 4})
    rows = [replace(row, rationale="a\nb") for row in task_named(recipe.domain).examples("train", 8)]
    alone = fitted_on(recipe, backbone, rows, checkpoints=(1, 2))
    together = fitted_on(recipe.with_values({"fit.processes": 2}), backbone, rows, checkpoints=(1, 2))
    assert together.fit.losses == pytest.approx(alone.fit.losses, rel=0.02)
    one, two = weights(alone, tmp_path / "one"), weights(together, tmp_path / "two")
    # Where the CPU computes in bfloat16, a part of a batch is rounded as it is split, and AdamW divides by a gradient's size.
    assert all(apart(two[key], tensor) < 0.1 for key, tensor in one.items())
    assert [taken.step for taken in together.checkpoints] == [1, 2]
    for taken, wanted in zip(together.checkpoints, alone.checkpoints, strict=True):
        assert all(apart(a, b) < 0.1 for a, b in zip(taken.parameters, wanted.parameters, strict=True))
    other = fitted_on(recipe.with_values({"method.seed": 1}), backbone, rows[:4])
    assert max(apart(tensor, one[key]) for key, tensor in weights(other, tmp_path / "other").items()) > 0.3


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the size of the wanted one."""
    return float((found - wanted).norm() / wanted.norm())
