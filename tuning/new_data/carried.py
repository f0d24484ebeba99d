"""What was fitted on new rows, under the champion's decoding policy: a fit by itself decodes plainly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapters.whole_file import whole_directory
from engine.profile import DecodingPolicy, Profile
from registry.manifest import ProfileDescription, TrainingHashes, verify, write_manifest


def carried(fitted: Path, policy: DecodingPolicy, directory: Path) -> Path:
    """The fit's own directory where it has that policy, else `directory` with its files under it, written whole.

    Of the manifest only what is served changes: it still says how the weights were fitted. A `directory` that is there stays.
    """
    profile = Profile.load(fitted)
    if profile.policy == policy:
        return fitted
    if directory.is_dir():
        return directory
    manifest = verify(fitted)
    with whole_directory(directory) as part:
        replace(profile, policy=policy).save(part)
        write_manifest(
            part,
            backbone=manifest.backbone,
            profile=ProfileDescription(
                adapters=manifest.profile.adapters,
                scale=manifest.profile.scale,
                decoding=policy.model_dump(mode="json"),
            ),
            recipe=manifest.recipe,
            task=manifest.task,
            data_digests=manifest.data_digests,
            lock_digest=manifest.lock_digest,
            seeds=manifest.seeds,
            training=TrainingHashes.read(fitted),
            derived=manifest.derived,
            fitted_on=manifest.fitted_on,
        )
    return directory
