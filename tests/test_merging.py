"""Releases made of releases: whole manifests, the rows of all parents, and one sentence for what cannot be joined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_releases import random_lora, random_thoughts

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.errors import BackboneMismatch, RefusedAdapter
from adapters.lora import LoRA
from adapters.merge import IntruderSpec, MergeSpec
from engine.profile import DecodingPolicy, Profile
from evaluation.tasks import TASKS
from registry.manifest import MANIFEST, TrainingHashes, verify
from registry.release import publish
from registry.tracking import Tracking
from service.cli import main
from service.commands.merge import _parents
from tuning.errors import BadRecipe
from tuning.gating import Subject, recipe_policy
from tuning.manifest import complete
from tuning.merging import Parents, merge, reduce_intruders
from tuning.recipe import Recipe
from tuning.siblings import sibling

ROWS = TASKS["arithmetic"].examples("train", 8)


def release(
    directory: Path, backbone: Backbone, *adapters: Adapter, rows: int = 0, protected: str = "boxes", policy: float = 0.0
) -> Subject:
    recipe = Recipe(name=directory.name, backbone=backbone.name, domain="icd10-chapter", protected=(protected,))
    profile = Profile(adapters, DecodingPolicy(temperature=policy))
    manifest = complete(directory, recipe, backbone, profile, 1.0, ROWS[rows : rows + 4])
    return Subject(directory.name, directory, manifest)


@pytest.fixture
def pair(tmp_path: Path, backbone: Backbone) -> list[Subject]:
    one = release(tmp_path / "one", backbone, random_lora(backbone, 1))
    return [one, release(tmp_path / "two", backbone, random_lora(backbone, 2), rows=4, protected="ordering")]


def test_a_merged_adapter_is_published_and_gated_like_any_other(
    backbone: Backbone, pair: list[Subject], tmp_path: Path, tracking: Tracking
) -> None:
    manifest = merge(Parents.of(pair, backbone), backbone, MergeSpec(weights=(1.0, 0.5)), tmp_path / "merged", "both")
    assert verify(tmp_path / "merged") == manifest
    subject = Subject("both", tmp_path / "merged", manifest)
    assert subject.recipe.name == "both" and subject.recipe.adapter.lora.rank == 8
    assert recipe_policy(subject.recipe).protected == ("boxes", "ordering")
    loaded = Profile.load(publish(tracking, "both", tmp_path / "merged").directory).adapters[0]
    assert isinstance(loaded, LoRA) and loaded.spec.rank == 8
    assert manifest.derived["how"] == "merge" and [one["name"] for one in manifest.derived["of"]] == ["one", "two"]  # type: ignore


def test_the_rows_of_every_parent_are_kept_for_the_gates_overlap_check(
    backbone: Backbone, pair: list[Subject], tmp_path: Path
) -> None:
    merge(Parents.of(pair, backbone), backbone, MergeSpec(), tmp_path / "merged")
    hashes = [TrainingHashes.read(tmp_path / name) for name in ("one", "two", "merged")]
    assert hashes[2].rows == hashes[0].rows | hashes[1].rows > hashes[0].rows


def test_one_without_its_intruders_keeps_the_old_files(backbone: Backbone, pair: list[Subject], tmp_path: Path) -> None:
    before = (tmp_path / "one" / MANIFEST).read_bytes()
    manifest = reduce_intruders(Parents.of(pair[:1], backbone), backbone, IntruderSpec(), tmp_path / "damped")
    assert manifest.derived["how"] == "reduce-intruders" and isinstance(manifest.derived["intruders"], dict)
    assert (tmp_path / "one" / MANIFEST).read_bytes() == before
    with pytest.raises(RefusedAdapter, match="those of one adapter, but got 2"):
        reduce_intruders(Parents.of(pair, backbone), backbone, IntruderSpec(), tmp_path / "both")


def test_an_adapter_without_intruders_is_said_to_have_none_and_nothing_is_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path / "fresh", backbone, random_lora(backbone, 1, size=0.0))

    def said(*arguments: str) -> str:
        places = [str(tmp_path / "fresh"), "--out", str(tmp_path / "damped"), "--home", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["graftline", "reduce-intruders", *places, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code and not list(tmp_path.glob("damped*"))
        return capsys.readouterr().out

    assert "fresh has no intruder dimensions: of the 10 strongest of each weight" in said() and "next:" not in said()
    assert json.loads(said("--json")) == {"directory": None, "derived": {"intruders": {}}}


def test_what_cannot_be_joined_is_refused_and_nothing_is_written(
    backbone: Backbone, testbed: Backbone, pair: list[Subject], tmp_path: Path
) -> None:
    thinks = release(tmp_path / "thinks", backbone, random_thoughts(backbone, 1))
    with pytest.raises(RefusedAdapter, match="thinks has .*have no sum"):
        Parents.of([pair[0], thinks], backbone)
    warm = release(tmp_path / "warm", backbone, random_lora(backbone, 3), policy=0.7)
    with pytest.raises(RefusedAdapter, match="decoded in one way"):
        Parents.of([pair[0], warm], backbone)
    with pytest.raises(BackboneMismatch, match="one was fitted on"):
        Parents.of(pair, testbed)
    with pytest.raises(BadRecipe, match="is there already"):
        merge(Parents.of(pair, backbone), backbone, MergeSpec(), tmp_path / "one")
    with pytest.raises(RefusedAdapter, match="got 1 for 2"):
        merge(Parents.of(pair, backbone), backbone, MergeSpec(weights=(1.0,)), tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def test_a_merged_adapter_has_no_siblings(backbone: Backbone, pair: list[Subject], tmp_path: Path) -> None:
    manifest = merge(Parents.of(pair, backbone), backbone, MergeSpec(), tmp_path / "merged")
    with pytest.raises(BadRecipe, match=r"made without a fit \(merge\).*training_seeds = 1"):
        sibling(Subject("merged", tmp_path / "merged", manifest), backbone, 1, tmp_path, lambda share: None)


def test_the_command_writes_a_directory_to_publish_and_names_a_bad_option(
    pair: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        places = [str(subject.directory) for subject in pair]
        monkeypatch.setattr("sys.argv", ["graftline", "merge", *places, "--home", str(tmp_path), "--json", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(str(ended.value.code))

    assert run("--out", str(tmp_path / "x"), "--combination", "mean") == 2
    assert "'combination'" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run("--out", str(tmp_path / "x"), "--combination", "ties", "--density", "0.2") == 0
    assert json.loads(capsys.readouterr().out)["derived"]["combination"] == "ties"
    assert verify(tmp_path / "x").derived["density"] == 0.2


def test_weights_by_command_are_the_sum_by_hand(
    backbone: Backbone, pair: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(weights: str) -> int:
        places = [str(subject.directory) for subject in pair]
        given = ["--out", str(tmp_path / "x"), "--weights", weights, "--home", str(tmp_path), "--json"]
        monkeypatch.setattr("sys.argv", ["graftline", "merge", *places, *given])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(str(ended.value.code))

    for wrong in ("0.5", "0.5,much", "0.5,nan"):
        assert run(wrong) == 2 and not (tmp_path / "x").exists()
        assert "weight" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run("-0.5,2") == 0
    assert verify(tmp_path / "x").derived["weights"] == [-0.5, 2.0]
    first, second, both = (_update(directory) for directory in (pair[0].directory, pair[1].directory, tmp_path / "x"))
    assert all(torch.allclose(both[path], -0.5 * first[path] + 2.0 * second[path], atol=1e-5) for path in first | second)
    assert not all(torch.allclose(both[path], first[path] + second[path], atol=1e-2) for path in first | second)


def test_what_was_fitted_in_four_bits_is_merged_by_the_backbones_own_weights(backbone: Backbone, tmp_path: Path) -> None:
    recipe = Recipe(name="small", backbone=backbone.name, domain="icd10-chapter", protected=("boxes",), backbone_format="nf4")
    complete(tmp_path / "one", recipe, backbone, Profile((random_lora(backbone, 1),)), 1.0, ROWS[:4])
    parents, loaded = _parents([str(tmp_path / "one")], tmp_path, None)
    assert parents.subjects[0].manifest.backbone.format == "nf4" and loaded.format == "full"


def _update(directory: Path) -> dict[str, torch.Tensor]:
    """scale * alpha / rank * B A by module, of the files alone."""
    [lora] = Profile.load(directory).adapters
    assert isinstance(lora, LoRA)
    tensors, strength = lora.tensors(), lora.scale * lora.spec.alpha / lora.spec.rank
    reads = {key: tensor for key, tensor in tensors.items() if "lora_A" in key}
    return {key.split(".lora_A")[0]: strength * tensors[key.replace("lora_A", "lora_B")] @ read for key, read in reads.items()}
