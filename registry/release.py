"""Releases: published versions of a registered model, never edited."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BackboneMismatch, DamagedRelease, NoRoom, RefusedName, UnknownRelease, lacks_room
from registry.manifest import MANIFEST, Manifest, file_digest, verify, verify_tensors
from registry.names import (
    CANDIDATE,
    NOT_THERE,
    ReleaseName,
    checked_name,
    current_actor,
    ledger_name,
    refuse_backbone_name,
    unknown_release,
)
from registry.policy import Policy, set_policy
from registry.tracking import Tracking, is_lost_connection
from registry.versions import versions_after

if TYPE_CHECKING:
    from mlflow import MlflowClient

MANIFEST_TAG, FINGERPRINT_TAG = "graftline.manifest_sha256", "graftline.backbone_fingerprint"
PUBLISHER_TAG = "graftline.published_by"
FORMAT_TAG = "graftline.backbone_format"  # of a release that was fitted around a backbone held in another one than its own
MODEL_TYPE = "graftline-adapter"
UNTRACKED = "graftline"


@dataclass(frozen=True)
class Release:
    """One published version: `directory` holds its verified files and is never written to."""

    name: str
    version: int
    directory: Path
    manifest: Manifest
    run_id: str | None  # the MLflow run that fitted it; None when it was published from a bare directory

    @property
    def full_name(self) -> ReleaseName:
        return ReleaseName(self.name, self.version)


def publish(
    tracking: Tracking,
    name: str,
    directory: Path,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    version_tags: Mapping[str, str] | None = None,
) -> Release:
    """A new version of the registered model (made when missing) from a directory with a manifest.

    The first release sets the policy of the name, from its recipe. `tags` go to the version and to its logged model,
    `version_tags`, which may be long, to the version alone.
    RefusedName where the registered model was deleted and its ledger is still there: a new version 1 would be taken for the one
    that was promoted. Whatever fails, no version, no logged model and no registered model made for it remain.
    """
    checked_name(name)
    manifest = verify(directory)
    refuse_backbone_name(name, manifest.backbone.name)
    verify_tensors(directory)
    manifest_digest = file_digest(directory / MANIFEST)
    fixed = {
        MANIFEST_TAG: manifest_digest,
        FINGERPRINT_TAG: manifest.backbone.fingerprint,
        PUBLISHER_TAG: current_actor(),
        **({FORMAT_TAG: manifest.backbone.format} if manifest.backbone.format != "full" else {}),
        **(version_tags or {}),
    }
    experiment_id = tracking.experiment(UNTRACKED) if run_id is None else _experiment_of(tracking, run_id)
    kept = _cached(tracking.cache, manifest_digest) or _placed(directory, tracking.cache, manifest_digest, name)
    with tracking.client() as client:
        model = client.create_logged_model(
            experiment_id,
            name=name.replace(".", "-"),  # a logged model's name may hold no dot, a registered model's may
            source_run_id=run_id,
            tags=dict(tags or {}),
            params=_params(manifest),
            model_type=MODEL_TYPE,
        )
        made_model = False
        try:
            client.log_model_artifacts(model.model_id, str(directory))
            client.finalize_logged_model(model.model_id, "READY")
            made_model = _ensure_registered(client, name)
            if made_model:
                _refuse_old_ledger(client, name)
            if made_model and (policy := Policy.of_manifest(manifest)) is not None:
                set_policy(tracking, name, policy, actor=current_actor(), reason="the recipe of the first release")
            version = client.create_model_version(
                name, source=f"models:/{model.model_id}", run_id=run_id, tags={**(tags or {}), **fixed}, model_id=model.model_id
            )
        except BaseException:
            _take_back(client, model.model_id, str(model.artifact_location), name if made_model else None)
            raise
    return Release(name, int(version.version), kept, manifest, run_id)


def mark_candidate(tracking: Tracking, release: ReleaseName) -> None:
    """Lets NAME@candidate mean this version, until a later one is marked. It promotes nothing."""
    with tracking.client() as client:
        client.set_registered_model_alias(release.name, CANDIDATE, str(release.version))


def published(tracking: Tracking, name: str, directory: Path) -> Release | None:
    """The version that was published from these very files; None when there is none."""
    digest = file_digest(directory / MANIFEST)
    with tracking.client() as client:
        every = versions_after(client, checked_name(name))
    found = next((int(version.version) for version in every if version.tags.get(MANIFEST_TAG) == digest), None)
    return load_release(tracking, name, found) if found is not None else None


def release_of_files(tracking: Tracking, manifest_sha256: str) -> Release | None:
    """Any version, of whatever name, whose manifest has that digest; None when there is none."""
    with tracking.client() as client:
        found = client.search_model_versions(f"tags.`{MANIFEST_TAG}`='{manifest_sha256}'", max_results=1)
    return load_release(tracking, found[0].name, int(found[0].version)) if found else None


def load_release(tracking: Tracking, name: str, version: int) -> Release:
    """The version's files, from the cache when they are there intact, else downloaded; verified either way."""
    from mlflow.exceptions import MlflowException

    checked_name(name)
    with tracking.client() as client:
        try:
            stored = client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code in NOT_THERE:
                raise unknown_release(tracking, str(ReleaseName(name, version))) from error
            raise
        expected = stored.tags.get(MANIFEST_TAG)
        if expected is None:
            raise UnknownRelease(
                f"A release carries the tag {MANIFEST_TAG}, but {name}@{version} has none: "
                "it was registered by other means. Publish it with `graftline publish`."
            )
        directory = _cached(tracking.cache, expected)
        if directory is None:
            directory = _download(client, str(stored.source), tracking.cache, expected, ReleaseName(name, version))
    return Release(name, version, directory, verify(directory), stored.run_id or None)


def has_copy(tracking: Tracking, release: ReleaseName) -> bool:
    """Whether this machine keeps the release's files, whole."""
    with tracking.client() as client:
        stored = client.get_model_version(release.name, str(release.version))
    return _cached(tracking.cache, stored.tags[MANIFEST_TAG]) is not None


def write_back(tracking: Tracking, release: ReleaseName) -> None:
    """Puts the copy of this machine where the registry has the release's files; DamagedRelease where that is not enough."""
    with tracking.client() as client:
        stored = client.get_model_version(release.name, str(release.version))
        copy = _cached(tracking.cache, stored.tags[MANIFEST_TAG])
        assert copy is not None, "has_copy says so first"
        with tempfile.TemporaryDirectory() as scratch:  # a copy of the bytes alone: read-only files could not be written twice
            shutil.copytree(copy, Path(scratch) / "files", copy_function=shutil.copyfile)
            client.log_model_artifacts(str(stored.source).removeprefix("models:/"), str(Path(scratch) / "files"))
    with tempfile.TemporaryDirectory() as scratch:
        load_release(replace(tracking, cache=Path(scratch)), release.name, release.version)


def check_backbone(release: Release, fingerprint: str) -> None:
    """BackboneMismatch unless the release was fitted on exactly these stored weights, tokenizer and template."""
    fitted_on = release.manifest.backbone
    if fitted_on.fingerprint != fingerprint:
        raise BackboneMismatch(
            f"Release {release.full_name} was fitted on {fitted_on.fingerprint[:12]}, this backbone is {fingerprint[:12]}. "
            f"Load {fitted_on.name!r} or fit the recipe again."
        )


def other_files(release: ReleaseName, promoted: str, found: str | None) -> str:
    """The sentence where a version is not what was made champion; both are digests of manifests."""
    return (
        f"A champion is served with the files that were promoted, but {release} was promoted with the manifest {promoted[:12]} "
        f"and has {'none' if found is None else found[:12]} now: it was exchanged. Publish what is meant as a version of its own "
        f"and promote it, or go back: `graftline rollback {release.name} --reason ...`."
    )


def _experiment_of(tracking: Tracking, run_id: str) -> str:
    with tracking.client() as client:
        return str(client.get_run(run_id).info.experiment_id)


def _params(manifest: Manifest) -> dict[str, str]:
    return {
        "backbone": manifest.backbone.name,
        "adapters": ",".join(manifest.profile.adapters) or "none",
        "scale": f"{manifest.profile.scale:g}",
        "format_version": str(manifest.format_version),
    }


def _ensure_registered(client: MlflowClient, name: str) -> bool:
    """Whether this call made the registered model."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
        return True
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False


def _refuse_old_ledger(client: MlflowClient, name: str) -> None:
    """Numbers of versions begin at 1 again where a registered model was deleted."""
    if client.search_model_versions(f"name='{ledger_name(name)}'", max_results=1):
        raise RefusedName(
            f"A ledger belongs to one registered model, but {name} was deleted and {ledger_name(name)} still says which of its "
            f"versions was promoted: a new version of that number would pass no gate. Publish under another name, restore {name} "
            f"from a backup, or delete {ledger_name(name)} as well."
        )


def _take_back(client: MlflowClient, model_id: str, location: str, made_name: str | None) -> None:
    """Undoes what can be undone; the first error is the one worth telling, so later ones stay quiet."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(MlflowException, OSError):
        client.delete_logged_model(model_id)
        if made_name is not None and not client.search_model_versions(f"name='{made_name}'", max_results=1):
            client.delete_registered_model(made_name)
    with suppress(MlflowException, OSError):
        get_artifact_repository(location).delete_artifacts()  # type: ignore[no-untyped-call]


def _cached(cache: Path, manifest_digest: str) -> Path | None:
    directory = cache / manifest_digest
    if not directory.is_dir():
        return None
    try:
        _prove(directory, manifest_digest)
    except DamagedRelease:
        shutil.rmtree(directory, ignore_errors=True)  # a copy: the registry still has the original
        return None
    return directory


def _download(client: MlflowClient, source: str, cache: Path, manifest_digest: str, full_name: ReleaseName) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    # The store keeps no model id with a version: it is the last part of the source models:/m-...
    location = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = Path(download_artifacts(artifact_uri=location, dst_path=scratch))
        except (OSError, MlflowException) as error:
            if is_lost_connection(error):
                raise
            if lacks_room(error):
                raise NoRoom(f"Fetching {full_name} needs room on this machine, but there is none. Free some.") from error
            reason = str(error).strip().splitlines()[-1]
            raise DamagedRelease(
                f"The files of {full_name} must be at {location}, but cannot be read ({reason}). Restore them or publish again."
            ) from error
        return _placed(found, cache, manifest_digest, full_name)


def _placed(source: Path, cache: Path, manifest_digest: str, named: ReleaseName | str) -> Path:
    try:
        return _place(source, cache, manifest_digest)
    except OSError as error:
        if lacks_room(error):
            raise NoRoom(f"Keeping {named} needs room in the home directory, but there is none. Free some.") from error
        raise


def _place(source: Path, cache: Path, manifest_digest: str) -> Path:
    """A read-only, verified copy under the digest of its manifest; readers see all of it or nothing."""
    target = cache / manifest_digest
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=cache, prefix=".part-"))
    try:
        copy = part / "files"
        shutil.copytree(source, copy)
        _prove(copy, manifest_digest)
        verify_tensors(copy)
        for file in copy.rglob("*"):
            if file.is_file():
                file.chmod(0o444)
        try:
            os.rename(copy, target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _prove(directory: Path, manifest_digest: str) -> None:
    verify(directory)
    found = file_digest(directory / MANIFEST)
    if found != manifest_digest:
        raise DamagedRelease(
            f"The manifest of a release must match the digest in the registry, but {directory / MANIFEST} has {found[:12]}, "
            f"not {manifest_digest[:12]}. Publish the release again from an intact copy."
        )
