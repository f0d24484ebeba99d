"""`graftline export`, `import` and `copy`: a release from one registry to another, where it is a candidate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from registry.errors import NoRegistry
from registry.home import home_directory
from registry.manifest import Manifest
from registry.names import checked_name, current_actor, resolve
from registry.printable import printable
from registry.release import check_backbone
from registry.tracking import Tracking, store_in
from registry.transfer import Imported, copy_release, export_release, import_release, proved_release
from service.audit import AuditLog
from service.elsewhere import elsewhere


def export(reference: str, target: Path, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    tracking = Tracking.at(home_directory(home), tracking_uri).existing()
    named = resolve(tracking, reference)
    made = export_release(tracking, named, target)
    if as_json:
        print(json.dumps({"release": str(named), "file": str(target), "sha256": made.sha256}))
    else:
        print(f"{named} is in {target}\nsha256 {made.sha256}\nimport it elsewhere: graftline import {target.name} --sha256 ...")


def import_(
    source: Path,
    name: str | None,
    sha256: str | None,
    backbone: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    if name is not None:
        checked_name(name)
    place = home_directory(home)
    release = proved_release(source, sha256)
    fingerprint = _fingerprint(release.manifest, backbone)
    if fingerprint is not None:
        check_backbone(release, fingerprint)
    tracking = Tracking.at(place, tracking_uri).create()
    with AuditLog(place).by_user("release.import", name or str(source), current_actor()) as act:
        done = import_release(tracking, source, name, sha256=sha256, backbone=fingerprint)
        act.detail |= {"release": str(done.release.full_name), "new": done.is_new, "sha256": done.origin.sha256}
    _show(done, elsewhere(place, tracking_uri), as_json)


def copy(reference: str, to: str, name: str | None, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    target = _registry(to, place).create()
    with AuditLog(place).by_user("release.copy", str(named), current_actor()) as act:
        done = copy_release(tracking, named, target, name)
        act.detail |= {"release": str(done.release.full_name), "new": done.is_new, "sha256": done.origin.sha256}
    _show(done, elsewhere(target.cache.parent, target.uri), as_json)


def _registry(to: str, home: Path) -> Tracking:
    """Of a home directory, or of a tracking URI; an SQLite file keeps its artifacts beside itself."""
    if "://" not in to:
        if ":" in to and not Path(to).exists():
            raise NoRegistry(f"A registry is a home directory, or a URI with its scheme, but got {to!r}. Try http://{to}.")
        return Tracking.at(Path(to), store_in(Path(to)))
    if to.startswith("sqlite:///"):
        return Tracking.at(Path(to.removeprefix("sqlite:///")).parent, to)
    return Tracking.at(home, to)


def _fingerprint(manifest: Manifest, backbone: str | None) -> str | None:
    """Of the backbone here that the release must have been fitted on; None where it is not on this machine."""
    from adapters.backbone import BUILT_IN, fingerprint_of, sources_of

    named = manifest.backbone.name
    if backbone is None and named not in BUILT_IN and not Path(named).expanduser().exists():
        told = "it is compared when it is gated, or now with --backbone"
        print(f"its backbone {named!r} is not on this machine: {told}", file=sys.stderr)
        return None
    return fingerprint_of(sources_of(backbone or named))


def _show(done: Imported, where: str, as_json: bool) -> None:
    release = str(done.release.full_name)
    if as_json:
        report = None if done.report is None else done.report.model_dump(mode="json")
        told = {"release": release, "new": done.is_new, "origin": done.origin.model_dump(), "gate_report_of_origin": report}
        print(json.dumps(told))
        return
    if not done.is_new:
        print(f"these files are {release} already; nothing was done")
        return
    print(f"published {release}, {done.origin.sentence}")
    if done.report is not None:
        print(f"said there: {printable(done.report.sentence)}")
    print(f"next: graftline promote {release}{where}")
