"""Catalogues: where the served releases come from, the MLflow registry with its ledger or a Bento's own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adapters.backbone import Backbone
from registry.canary import CanaryLedger
from registry.canary_chain import Canary, Trail
from registry.errors import DamagedRelease, NoCanary, NoChampion, UnknownRelease
from registry.ledger_reader import LedgerReader
from registry.manifest import MANIFEST, file_digest, verify
from registry.names import CHAMPION, ReleaseName, registered_names, resolve
from registry.release import Release, load_release, other_files
from registry.tracking import Tracking

INDEX = "index.json"
SERVICE_ACTOR = "the service"  # whom the ledger names for what nobody asked for


class Catalogue(Protocol):
    """May block on disk and network: call it from a thread."""

    def champions(self) -> Mapping[str, int | None]:
        """Every name that may be asked for, with the version that the ledger promoted; None: nothing was promoted."""
        ...

    def trails(self) -> Mapping[str, Trail]:
        """What the look of `champions` has read of each name's canaries; asks nobody."""
        ...

    def roll_back_canary(self, canary: Canary, reason: str) -> None:
        """Ends what is under way, by compare-and-set: CanaryMoved or NoCanary when it has ended already."""
        ...

    def resolve(self, reference: str) -> ReleaseName:
        """NAME@ALIAS or NAME@VERSION; UnknownRelease when there is none."""
        ...

    def open(self, release: ReleaseName) -> Release:
        """The release with its files verified."""
        ...


class RegistryCatalogue:
    """The registry of a tracking store. The ledger says who is champion; an alias of that name is never read."""

    def __init__(self, tracking: Tracking, names: tuple[str, ...] = ()) -> None:
        self._tracking = tracking
        self._names = names
        self._readers: dict[str, LedgerReader] = {}

    def champions(self) -> Mapping[str, int | None]:
        return {name: self._champion(name) for name in self._names or registered_names(self._tracking)}

    def trails(self) -> Mapping[str, Trail]:
        return {name: reader.trail for name, reader in self._readers.items()}

    def roll_back_canary(self, canary: Canary, reason: str) -> None:
        CanaryLedger(self._tracking, canary.release.name).end("rollback", reason, actor=SERVICE_ACTOR, expected=canary)

    def resolve(self, reference: str) -> ReleaseName:
        return resolve(self._tracking, reference)

    def open(self, release: ReleaseName) -> Release:
        """DamagedRelease as well where its files are not those that were promoted, or that its canary was started with."""
        found = load_release(self._tracking, release.name, release.version)
        reader = self._readers.get(release.name)
        if reader is None:
            return found
        head, canary, digest = reader.head, reader.canary, file_digest(found.directory / MANIFEST)
        if head.adapter_version == release.version and head.manifest not in (None, digest):
            assert head.manifest is not None
            raise DamagedRelease(other_files(release, head.manifest, digest))
        if canary is not None and canary.release == release and (sentence := canary.exchanged(digest)) is not None:
            raise DamagedRelease(sentence)
        return found

    def _champion(self, name: str) -> int | None:
        reader = self._readers.setdefault(name, LedgerReader(self._tracking, name))
        try:
            return reader.refresh()
        except NoChampion:
            return None


@dataclass(frozen=True)
class FrozenBackbone:
    """`fingerprint` is what the releases were fitted on; `stored_fingerprint` proves the bundled files."""

    name: str
    fingerprint: str
    stored_fingerprint: str


class FrozenCatalogue:
    """A folder with `index.json`, `backbone/` and one directory a release: it never changes."""

    def __init__(self, directory: Path) -> None:
        file = directory / INDEX
        try:
            index = json.loads(file.read_text())
            self.backbone = FrozenBackbone(**index["backbone"])
            self._releases = {
                ReleaseName(entry["name"], int(entry["version"])): (entry["directory"], entry["manifest_sha256"])
                for entry in index["releases"]
            }
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedRelease(
                f"A bundle has a readable {INDEX}, but {file} is not ({error}). Build the Bento again."
            ) from error
        self._directory = directory

    def champions(self) -> Mapping[str, int | None]:
        return {release.name: release.version for release in self._releases}

    def trails(self) -> Mapping[str, Trail]:
        return {}

    def roll_back_canary(self, canary: Canary, reason: str) -> None:
        raise NoCanary(f"A Bento has no ledger, so that nothing in it can end {canary.release}. Build it again.")

    def resolve(self, reference: str) -> ReleaseName:
        name, _, selector = reference.partition("@")
        for release in self._releases:
            if release.name == name and selector in (CHAMPION, str(release.version), f"v{release.version}"):
                return release
        held = ", ".join(map(str, self._releases)) or "none"
        raise UnknownRelease(f"This Bento holds {held}, but {reference!r} was asked for. Build a Bento after promoting it.")

    def open(self, release: ReleaseName) -> Release:
        folder, expected = self._releases[release]
        directory = self._directory / folder
        manifest = verify(directory)
        found = file_digest(directory / MANIFEST)
        if found != expected:
            raise DamagedRelease(
                f"The manifest of {release} must have the digest in {INDEX}, but has {found[:12]}, not {expected[:12]}. "
                "Build the Bento again."
            )
        return Release(release.name, release.version, directory, manifest, None)

    def load_backbone(self, device: str | None) -> Backbone:
        """The bundled backbone under the identity that the releases were fitted on."""
        loaded = Backbone.load(str(self._directory / "backbone"), device=device)
        if loaded.fingerprint != self.backbone.stored_fingerprint:
            raise DamagedRelease(
                f"The bundled backbone must have the fingerprint {self.backbone.stored_fingerprint[:12]}, "
                f"but has {loaded.fingerprint[:12]}: its files were changed. Build the Bento again."
            )
        return replace(loaded, name=self.backbone.name, fingerprint=self.backbone.fingerprint)


if TYPE_CHECKING:
    _: Catalogue = RegistryCatalogue(Tracking("", None, Path()))
    __: Catalogue = FrozenCatalogue(Path())
