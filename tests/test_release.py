"""Publishing and loading: what went in comes out, or one sentence says which file is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from safetensors.numpy import save_file
from stores import store_at

from adapters.errors import BackboneMismatch as AdapterBackboneMismatch
from registry.errors import BackboneMismatch, DamagedRelease, NoRoom, RefusedName, StoreRefused, UnknownRelease
from registry.manifest import (
    BackboneIdentity,
    Manifest,
    ProfileDescription,
    TrainingHashes,
    verify,
    verify_tensors,
    write_manifest,
)
from registry.names import checked_name, registered_names, resolve
from registry.release import check_backbone, load_release, publish, write_back
from registry.tracking import Tracking

WEIGHTS = "lora/adapter_model.safetensors"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: making its tables takes a second, copying them nothing."""
    home = tmp_path_factory.mktemp("store")
    store_at(home)
    return home / "mlflow.db"


@pytest.fixture
def tracking(tmp_path: Path, empty_store: Path) -> Tracking:
    (tmp_path / "home").mkdir()
    shutil.copy(empty_store, tmp_path / "home" / "mlflow.db")
    return Tracking.at(tmp_path / "home")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    adapter_directory(folder)
    return folder


def adapter_directory(folder: Path, value: float = 1.0) -> Manifest:
    (folder / "lora").mkdir(parents=True)
    save_file({"lora_A": np.full((2, 2), value, dtype=np.float32)}, folder / WEIGHTS)
    return write_manifest(
        folder,
        backbone=BackboneIdentity(name="tiny", fingerprint="f" * 64, dtype="float32"),
        profile=ProfileDescription(adapters=("lora",), scale=0.5),
        recipe={"method": "sft", "rank": 4},
        task={"name": "icd10"},
        data_digests={"train": "d" * 64},
        lock_digest="l" * 64,
        seeds={"fit": 3},
        training=TrainingHashes(frozenset({"r1", "r2"}), frozenset({"n1"})),
    )


def stored_files(tracking: Tracking) -> list[Path]:
    return [file for file in Path(str(tracking.artifact_root)).rglob("*") if file.is_file()]


def test_a_published_release_loads_with_the_same_files_and_manifest(tracking: Tracking, directory: Path) -> None:
    run = tracking.start_run("medicine", "trial 0")
    made = publish(tracking, "medicine.coding", directory, run, {"study": "medicine"})
    shutil.rmtree(tracking.cache)
    loaded = load_release(tracking, "medicine.coding", 1)
    assert loaded == made and loaded.run_id == run and str(loaded.full_name) == "medicine.coding@1"
    assert (loaded.directory / WEIGHTS).read_bytes() == (directory / WEIGHTS).read_bytes()
    assert TrainingHashes.read(loaded.directory).rows == {"r1", "r2"}
    with tracking.client() as client:
        version = client.get_model_version("medicine.coding", "1")
        assert version.tags["study"] == "medicine" and version.source.startswith("models:/m-")


def test_publishing_again_makes_the_next_version(tracking: Tracking, directory: Path, tmp_path: Path) -> None:
    adapter_directory(tmp_path / "other", value=2.0)
    versions = [publish(tracking, "medicine", folder).version for folder in (directory, tmp_path / "other")]
    assert versions == [1, 2]
    assert load_release(tracking, "medicine", 1).directory != load_release(tracking, "medicine", 2).directory


def test_the_model_card_says_backbone_scale_and_recipe(directory: Path) -> None:
    card = (directory / "README.md").read_text()
    assert "tiny" in card and "scale 0.5" in card and '"rank": 4' in card


def test_a_changed_file_is_named(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedRelease, match=WEIGHTS):
        verify(directory)


@pytest.mark.parametrize("name", [WEIGHTS, "training_hashes.json", "manifest.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(DamagedRelease, match=name):
        verify(directory)


def test_a_file_that_the_manifest_does_not_name_is_named(directory: Path) -> None:
    (directory / "extra.bin").write_text("")
    with pytest.raises(DamagedRelease, match="extra.bin"):
        verify(directory)


def test_a_manifest_with_an_unknown_key_is_refused(directory: Path) -> None:
    stored = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**stored, "surprise": 1}))
    with pytest.raises(DamagedRelease, match="surprise"):
        verify(directory)


def test_weights_cut_short_are_damaged(tmp_path: Path) -> None:
    save_file({"lora_A": np.ones((8, 8), dtype=np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-40])
    with pytest.raises(DamagedRelease, match="a.safetensors"):
        verify_tensors(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: type) -> None:
    save_file({"fine": np.ones(3, dtype=dtype), "lora_B": np.array([1, bad], dtype=dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(DamagedRelease, match="lora_B"):
        verify_tensors(tmp_path)


@pytest.mark.parametrize(("bits", "finite"), [(0x3F80, True), (0x7F7F, True), (0x7F80, False), (0xFFC0, False)])
def test_bfloat16_weights_are_looked_at_bit_by_bit(tmp_path: Path, bits: int, finite: bool) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.to_bytes(2, "little"))
    if finite:
        verify_tensors(tmp_path)
    else:
        with pytest.raises(DamagedRelease, match="NaN or infinity"):
            verify_tensors(tmp_path)


def test_nothing_of_a_damaged_directory_reaches_the_registry(tracking: Tracking, directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(DamagedRelease):
        publish(tracking, "medicine", directory)
    assert registered_names(tracking) == [] and stored_files(tracking) == []


def test_nothing_remains_when_the_registry_refuses_the_version(tracking: Tracking, directory: Path) -> None:
    run = tracking.start_run("medicine", "trial 0")
    # The registry refuses the tag's length only once the files are stored and the registered model is made.
    with pytest.raises(Exception, match="exceeds the maximum"):
        publish(tracking, "medicine", directory, run, {"k" * 300: "v"})
    with tracking.client() as client:
        experiment = client.get_run(run).info.experiment_id
        assert list(client.search_logged_models([experiment])) == []
    assert registered_names(tracking) == [] and stored_files(tracking) == []


def test_nothing_remains_when_there_is_no_room_for_the_copy(
    tracking: Tracking, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("registry.release.shutil.copytree", full)
    with pytest.raises(NoRoom, match="Keeping medicine"):
        publish(tracking, "medicine", directory)
    assert registered_names(tracking) == [] and stored_files(tracking) == []


def test_files_can_be_written_back_again_and_again(tracking: Tracking, directory: Path) -> None:
    release = publish(tracking, "medicine", directory).full_name
    for _ in range(2):
        (stored,) = (file for file in stored_files(tracking) if file.match(WEIGHTS))
        stored.write_bytes(b"rotten")
        write_back(tracking, release)
        assert stored.read_bytes() == (directory / WEIGHTS).read_bytes() and stored.stat().st_mode & 0o200


def test_a_damaged_cache_is_fetched_again(tracking: Tracking, directory: Path) -> None:
    cached = publish(tracking, "medicine", directory).directory / WEIGHTS
    cached.chmod(0o644)
    cached.write_bytes(b"rotten")
    assert (load_release(tracking, "medicine", 1).directory / WEIGHTS).read_bytes() == (directory / WEIGHTS).read_bytes()


def test_a_damaged_store_is_an_error_that_names_the_file(tracking: Tracking, directory: Path) -> None:
    publish(tracking, "medicine", directory)
    shutil.rmtree(tracking.cache)
    next(file for file in stored_files(tracking) if file.name == Path(WEIGHTS).name).write_bytes(b"rotten")
    with pytest.raises(DamagedRelease, match=WEIGHTS):
        load_release(tracking, "medicine", 1)
    assert list(tracking.cache.iterdir()) == []


def test_files_that_are_gone_from_the_store_are_one_sentence(tracking: Tracking, directory: Path) -> None:
    publish(tracking, "medicine", directory)
    shutil.rmtree(tracking.cache)
    shutil.rmtree(str(tracking.artifact_root))
    with pytest.raises(DamagedRelease, match="medicine@1"):
        load_release(tracking, "medicine", 1)


def test_a_version_that_was_swapped_for_other_files_is_not_loaded(tracking: Tracking, directory: Path, tmp_path: Path) -> None:
    publish(tracking, "medicine", directory)
    shutil.rmtree(tracking.cache)
    stored = next(file for file in stored_files(tracking) if file.name == "manifest.json").parent
    shutil.rmtree(stored)
    adapter_directory(stored, value=7.0)  # sound in itself, but not what was published
    with pytest.raises(DamagedRelease, match="digest in the registry"):
        load_release(tracking, "medicine", 1)


def test_another_backbone_is_a_mismatch_in_the_words_of_both_packages(tracking: Tracking, directory: Path) -> None:
    release = publish(tracking, "medicine", directory)
    check_backbone(release, "f" * 64)
    with pytest.raises(BackboneMismatch, match="medicine@1.*tiny") as raised:
        check_backbone(release, "0" * 64)
    assert isinstance(raised.value, AdapterBackboneMismatch)


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@1", "it's", "50%", "", " a", "medicine.releases"])
def test_names_that_would_be_ambiguous_are_refused(tracking: Tracking, directory: Path, name: str) -> None:
    with pytest.raises(RefusedName):
        checked_name(name)
    with pytest.raises(RefusedName):
        publish(tracking, name, directory)


def test_a_release_does_not_take_the_name_of_its_own_backbone(tracking: Tracking, directory: Path) -> None:
    with pytest.raises(RefusedName, match="the name of its own backbone.*'tiny'"):
        publish(tracking, "tiny", directory)
    assert registered_names(tracking) == []


def test_versions_and_aliases_are_found_and_others_are_answered_with_what_there_is(tracking: Tracking, directory: Path) -> None:
    publish(tracking, "medicine", directory)
    with tracking.client() as client:
        client.set_registered_model_alias("medicine", "candidate", "1")
    found = {str(resolve(tracking, f"medicine@{selector}")) for selector in ("1", "v1", "candidate")}
    assert found == {"medicine@1"}
    for unknown in ("medicine@2", "medicine@nobody", "law@1"):
        with pytest.raises(UnknownRelease, match="models: medicine"):
            resolve(tracking, unknown)
    with pytest.raises(UnknownRelease):
        load_release(tracking, "medicine", 9)
    with pytest.raises(RefusedName):
        resolve(tracking, "medicine@")


def test_an_error_of_the_store_is_not_an_unknown_release(
    tracking: Tracking, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise MlflowException("not today", error_code=PERMISSION_DENIED)

    publish(tracking, "medicine", directory)
    monkeypatch.setattr("mlflow.MlflowClient.get_model_version", refuses)
    with pytest.raises(StoreRefused, match="not today"):
        resolve(tracking, "medicine@1")


def test_a_version_that_was_registered_by_other_means_is_not_a_release(tracking: Tracking, directory: Path) -> None:
    publish(tracking, "medicine", directory)
    with tracking.client() as client:
        client.create_model_version("medicine", source="models:/medicine/1")
    with pytest.raises(UnknownRelease, match="graftline publish"):
        load_release(tracking, "medicine", 2)
