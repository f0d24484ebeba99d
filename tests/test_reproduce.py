"""`graftline reproduce`: a fit that comes out again bit for bit, one that does not, and data that are others now."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from small_releases import random_lora, write_release
from small_studies import small
from stores import store_at

from adapters.backbone import Backbone
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.errors import DataChanged
from evaluation.tasks import task_named
from registry.claim import held
from registry.errors import BackboneMismatch
from registry.manifest import Machine, file_digest, read_manifest
from registry.release import publish
from service.commands.reproduce import DIFFERENT
from service.commands.reproduce import reproduce as command
from tuning.errors import NotReproducible, StudyIsRunning
from tuning.gating import Subject
from tuning.ground import new_adapters
from tuning.machine import changes
from tuning.manifest import complete
from tuning.methods import METHODS
from tuning.plan import training_examples
from tuning.recipe import Recipe
from tuning.reproduce import Nearness, compared_files, reproduce
from tuning.siblings import reseeded


@pytest.fixture
def task(tmp_path: Path) -> Path:
    data, toml = tmp_path / "data.csv", tmp_path / "mine.toml"
    rows = (f"Is number {n} even?,{'no' if n % 2 else 'yes'},yes|no\n" for n in range(60))
    data.write_text("q,a,c\n" + "".join(rows))
    toml.write_text('name = "mine"\nfile = "data.csv"\n[columns]\nquestion = "q"\nanswer = "a"\nchoices = "c"\n')
    return toml


@pytest.fixture
def own(backbone: Backbone, task: Path) -> Recipe:
    return small(Path(backbone.name), **{"adapter.kind": "lora", "domain": str(task)})


def fitted(backbone: Backbone, recipe: Recipe, directory: Path, told: Recipe | None = None) -> Subject:
    """A release at half its strength; `told` is another recipe than the one that it was fitted by, in its manifest."""
    domain = task_named(recipe.domain)
    adapters, examples = new_adapters(recipe, backbone), training_examples(recipe, domain)
    METHODS[recipe.method.name](recipe.method).fit(backbone, adapters, examples, task=domain)
    told = told or recipe
    manifest = complete(
        directory, told, backbone, Profile(adapters).scaled(0.5), 0.5, training_examples(told, task_named(told.domain))
    )
    return Subject("small@1", directory, manifest)


def fitted_again(subject: Subject, backbone: Backbone, tmp_path: Path) -> Nearness:
    return reproduce(subject, backbone, TorchEngine(backbone), tmp_path / "again").nearness


def test_a_release_comes_out_again_bit_for_bit_and_its_machine_is_as_it_was(
    backbone: Backbone, own: Recipe, tmp_path: Path
) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    found = reproduce(subject, backbone, TorchEngine(backbone), tmp_path / "again")
    assert found.nearness == Nearness(True, 0.0, 0.0, 0.0) and found.nearness.verdict == "identical"
    assert found.bits_expected and (found.directory / "adapter_model.safetensors").is_file()
    assert reproduce(subject, backbone, TorchEngine(backbone), tmp_path / "again").nearness == found.nearness


def test_another_seed_is_different(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    found = fitted_again(fitted(backbone, own, tmp_path / "a", told=reseeded(own, 1)), backbone, tmp_path)
    assert found.verdict == "different" and found.relative_distance > 0.5


def test_a_last_bit_is_not_identical_but_equivalent(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    lora = Profile.load(subject.directory).adapters[0]
    key = next(iter(lora.tensors()))  # type: ignore[attr-defined]
    lora.tensors()[key] *= 1 + 2**-20  # type: ignore[attr-defined]
    Profile((lora,)).save(tmp_path / "b")
    examples = task_named(own.domain).examples("select", 8)
    found = compared_files(subject.directory, tmp_path / "b", TorchEngine(backbone), backbone, examples)
    assert not found.bit_equal and found.verdict == "equivalent" and 0 < found.relative_distance < 1e-5


@pytest.mark.slow
def test_another_strength_of_the_same_weights_is_not_identical(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    Profile.load(subject.directory).scaled(2.0).save(tmp_path / "b")
    examples = task_named(own.domain).examples("select", 8)
    found = compared_files(subject.directory, tmp_path / "b", TorchEngine(backbone), backbone, examples)
    assert found.relative_distance == 0.0 and not found.bit_equal


def test_an_adapter_of_another_shape_is_different(backbone: Backbone, tmp_path: Path) -> None:
    write_release(tmp_path / "a", backbone, random_lora(backbone, 1))
    (tmp_path / "b").mkdir()
    found = compared_files(tmp_path / "a", tmp_path / "b", TorchEngine(backbone), backbone, [])
    assert found.verdict == "different" and found.mean_nats == math.inf


def test_changed_data_are_refused_with_both_digests_before_any_fit(
    backbone: Backbone, own: Recipe, task: Path, tmp_path: Path
) -> None:
    subject, data = fitted(backbone, own, tmp_path / "a"), task.parent / "data.csv"
    before = file_digest(data)[:12]
    data.write_text(data.read_text().replace("number 7 ", "number 77 "))
    with pytest.raises(DataChanged, match=f"SHA-256 {before}, but it is {file_digest(data)[:12]} now"):
        fitted_again(subject, backbone, tmp_path)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_rows_that_are_drawn_otherwise_are_refused_with_both_digests(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    now = subject.manifest.data_digests["train"][:12]
    claimed = subject.manifest.model_copy(update={"data_digests": {"train": "d" * 64}})
    with pytest.raises(DataChanged, match=f"rows with SHA-256 dddddddddddd, but its recipe draws rows with {now} now"):
        fitted_again(Subject(subject.name, subject.directory, claimed), backbone, tmp_path)


@pytest.mark.slow
def test_another_backbone_is_refused(backbone: Backbone, testbed: Backbone, own: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BackboneMismatch, match="on its own backbone"):
        fitted_again(fitted(backbone, own, tmp_path / "a"), testbed, tmp_path)


def test_what_no_fit_made_is_not_fitted_again(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    examples = task_named(own.domain).examples("train", 8)
    manifest = complete(tmp_path / "a", own, backbone, Profile((random_lora(backbone, 1),)), 1.0, examples, {"how": "merge"})
    assert manifest.fitted_on is None
    with pytest.raises(NotReproducible, match=r"without a fit \(merge\)"):
        fitted_again(Subject("small@1", tmp_path / "a", manifest), backbone, tmp_path)


def test_a_manifest_from_before_machines_were_recorded_is_read_and_says_nothing_of_them(
    backbone: Backbone, own: Recipe, tmp_path: Path
) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    told = json.loads(file.read_text())
    assert told.pop("fitted_on")["threads"] == 1
    file.write_text(json.dumps(told))
    old = Subject("small@1", subject.directory, read_manifest(tmp_path / "a"))
    assert reproduce(old, backbone, TorchEngine(backbone), tmp_path / "again").changed is None


def test_two_processes_do_not_fit_the_same_release_again_at_once(backbone: Backbone, own: Recipe, tmp_path: Path) -> None:
    subject = fitted(backbone, own, tmp_path / "a")
    with held(tmp_path / "again" / "lock"), pytest.raises(StudyIsRunning, match="one process at a time"):
        fitted_again(subject, backbone, tmp_path)
    assert not (tmp_path / "again" / "adapter").exists()


def test_what_changed_on_the_machine_is_named() -> None:
    then = Machine(cpu="one", instructions="AVX2", device="cpu", threads=2, packages={"torch": "2.12.0", "trl": "1.0"})
    now = then.model_copy(update={"threads": 4, "packages": {"torch": "2.13.0"}})
    assert list(changes(then, now)) == ["threads 2, now 4", "torch 2.12.0, now 2.13.0", "trl 1.0, now none"]
    assert not list(changes(then, then))


@pytest.mark.slow
def test_the_command_tells_the_verdict_by_its_exit_code(
    backbone: Backbone, own: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = store_at(tmp_path / "home")
    fitted(backbone, own, tmp_path / "a")
    fitted(backbone, own, tmp_path / "b", told=reseeded(own, 1))
    for directory in ("a", "b"):
        publish(tracking, "small", tmp_path / directory)
    assert command("small@1", tmp_path / "home", None, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["changed"], told["bits_expected"]) == ("identical", [], True)
    assert command("small@2", tmp_path / "home", None, as_json=False) == DIFFERENT
    assert "small@2 fitted again: different" in capsys.readouterr().out
