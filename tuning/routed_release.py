"""A routed profile as a release: what it was routed by, with the vectors that stand for it beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.whole_file import whole_directory
from engine.profile import Profile
from evaluation.task import Example
from registry.manifest import MANIFEST, Manifest, TrainingHashes, file_digest, write_manifest
from tuning.manifest import hashes_of, installed_digest
from tuning.plan import data_digest


def write_routed(
    directory: Path, profile: Profile, of: str, source: Path, manifest: Manifest | None, fitted_on: Sequence[Example]
) -> Manifest | None:
    """Writes a new directory, whole or not at all. `source` are the files of `of`, which a publishable one has a manifest of.

    None where it has none: then there is nothing that a gate could go by. Else recipe and data are those of the source, and
    what the vectors were fitted on is among what no item of the gate may repeat.
    """
    assert profile.routing is not None
    with whole_directory(directory) as part:
        profile.save(part)
        if manifest is None:
            return None
        before, also = TrainingHashes.read(source), hashes_of(fitted_on)
        return write_manifest(
            part,
            backbone=manifest.backbone,
            profile=manifest.profile,
            recipe=manifest.recipe,
            task=manifest.task,
            data_digests={**manifest.data_digests, "routing": data_digest(fitted_on)},
            lock_digest=installed_digest(),
            seeds=manifest.seeds,
            training=TrainingHashes(before.rows | also.rows, before.ngrams | also.ngrams),
            derived={
                **manifest.derived,
                "how": "the backbone, steered by few vectors where an adapter would write otherwise",
                "categories": profile.routing.num_categories,
                "of": {"name": of, "manifest_sha256": file_digest(source / MANIFEST)},
            },
        )
