"""What a command measures: an adapter beside its backbone in one engine, its domain, and the tasks that can show a change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BackboneMismatch, NoRegistry, UnknownRelease
from registry.home import home_directory
from registry.manifest import MANIFEST, Manifest, directory_digest, verify
from registry.names import resolve
from registry.release import Release, check_backbone, load_release
from registry.tracking import Tracking

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from engine.twin import Precision
    from evaluation.base_cache import BaseCache
    from evaluation.task import Task

LOADED = "subject"  # the name under which the engine holds the adapter


@dataclass(frozen=True)
class Subject:
    name: str
    profile: Profile
    backbone: Backbone
    engine: TorchEngine
    domain: Task
    protected: tuple[str, ...]  # names of the tasks that guard its reasoning
    cache: BaseCache  # of the backbone's readings
    adapted_cache: BaseCache
    home: Path
    directory: Path
    manifest: Manifest | None  # None: plain adapter files
    precision: Precision = "float32"

    def measurable(self, *also: str) -> tuple[list[Task], dict[str, str]]:
        """The protected tasks, and others, that the backbone can do; for the rest, by name, why not."""
        from evaluation.admission import admissions, stored_admission
        from evaluation.tasks import task_named

        families = [task_named(name) for name in dict.fromkeys((*self.protected, *also))]
        cache = self.home / "cache"
        known = {family.name: stored_admission(self.backbone, family, cache, precision=self.precision) for family in families}
        if fresh := [name for name, found in known.items() if found is None]:
            told = "trying once what this backbone can do, with and without damage; a minute or more each"
            print(f"{told}: {', '.join(fresh)}", file=sys.stderr)
        found = admissions(self.engine, self.backbone, families, cache, precision=self.precision)
        kept = [family for family in families if found[family.name].admitted]
        return kept, {family.name: "; ".join(found[family.name].reasons) for family in families if family not in kept}


def served_backbone(release: Release, say: Callable[[str], None]) -> Backbone:
    """That of a release in its own dtype, whatever it was held in for the fit: so the service holds it, and so a gate does."""
    from adapters.backbone import Backbone

    fitted_on = release.manifest.backbone
    backbone = Backbone.load(fitted_on.name)
    check_backbone(release, backbone.fingerprint)
    if fitted_on.format != backbone.format:
        told = f"{release.full_name} was fitted around its backbone in {fitted_on.format}"
        say(f"{told}; it is measured as it is served, in {backbone.numbers}")
    return backbone


def load_subject(
    named: str,
    domain: str | None,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    precision: Precision = "float32",
) -> Subject:
    """A published release or a directory of adapter files, on the backbone that it was fitted on."""
    from adapters.backbone import REASONER, Backbone
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.base_cache import BaseCache
    from evaluation.tasks import task_named
    from tuning.gating import check_tasks
    from tuning.recipe import REASONING_FAMILIES

    place = home_directory(home)
    directory, manifest = files_of(named, place, tracking_uri)
    profile, recipe = Profile.load(directory), manifest.recipe if manifest else {}
    fitted_on = manifest.backbone if manifest else None
    backbone = Backbone.load(
        backbone_name or (fitted_on.name if fitted_on else REASONER),
        format=fitted_on.format if fitted_on else "full",
    )
    if manifest is not None and manifest.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"{named} was fitted on backbone {manifest.backbone.name} ({manifest.backbone.fingerprint[:12]}), but "
            f"{backbone.name} is {backbone.fingerprint[:12]}. Leave out --backbone, or fit the recipe again on this one."
        )
    if backbone.format != "full":
        told = f"{named} is measured as it was fitted, around its backbone in {backbone.format}"
        print(f"{told}; the gate and the service hold the backbone in its own dtype", file=sys.stderr)
    engine = TorchEngine(backbone, max_rows=64, precision=precision)
    engine.load(LOADED, profile)
    if manifest is not None and domain is None:
        check_tasks(manifest, named)
    protected = recipe.get("protected")
    computed = str(backbone.dtype) if precision == "float32" else precision
    return Subject(
        named,
        profile,
        backbone,
        engine,
        task_named(str(recipe.get("domain", "icd10")) if domain is None else domain),
        tuple(map(str, protected)) if isinstance(protected, list) else REASONING_FAMILIES,
        BaseCache(place / "cache" / "base", computed),
        BaseCache(place / "cache" / "adapted", computed, directory_digest(directory)),
        place,
        directory,
        manifest,
        precision,
    )


def files_of(named: str, home: Path, tracking_uri: str | None) -> tuple[Path, Manifest | None]:
    """A directory as its manifest says it is (plain PEFT directories have none), or a published release."""
    directory = Path(named)
    if directory.is_dir():
        return directory, verify(directory) if (directory / MANIFEST).is_file() else None
    if "/" in named:
        raise UnknownRelease(
            f"What is measured is a release (NAME, NAME@VERSION, NAME@ALIAS) or a directory of adapter files, but {named!r} is "
            "neither. Correct the path."
        )
    try:
        tracking = Tracking.at(home, tracking_uri).existing()
    except NoRegistry as error:
        raise NoRegistry(f"{named!r} is no directory here. {error}") from error
    try:
        found = resolve(tracking, named)
    except UnknownRelease as error:
        raise UnknownRelease(f"{error} A directory of adapter files would do too, but none here has that name.") from error
    release = load_release(tracking, found.name, found.version)
    return release.directory, release.manifest
