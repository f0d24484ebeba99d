"""The folder that `FrozenCatalogue` reads: a backbone and the promoted releases, as files that need no registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from registry.manifest import MANIFEST, file_digest
from registry.names import ReleaseName
from registry.release import check_backbone
from service.catalogue import INDEX, Catalogue


def write_frozen(directory: Path, backbone: Backbone, catalogue: Catalogue) -> None:
    """The backbone with its weights as they are in memory, every champion, and last the index."""
    backbone.model.save_pretrained(directory / "backbone")
    backbone.tokenizer.save_pretrained(directory / "backbone")
    stored = Backbone.load(str(directory / "backbone"), device="cpu").fingerprint
    index = {
        "format_version": 1,
        "backbone": {"name": Path(backbone.name).name, "fingerprint": backbone.fingerprint, "stored_fingerprint": stored},
        "releases": list(_copied_releases(directory, backbone, catalogue)),
    }
    write_whole(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _copied_releases(directory: Path, backbone: Backbone, catalogue: Catalogue) -> Iterator[dict[str, str | int]]:
    for name, number in sorted(catalogue.champions().items()):
        if number is None:
            continue
        release = catalogue.open(ReleaseName(name, number))
        check_backbone(release, backbone.fingerprint)
        folder = f"releases/{name}@{number}"
        shutil.copytree(release.directory, directory / folder)
        digest = file_digest(release.directory / MANIFEST)
        yield {"name": name, "version": number, "directory": folder, "manifest_sha256": digest}
