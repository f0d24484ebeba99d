"""Releases from one registry to another: files, manifest and gate report as one folder or archive, proved by one SHA-256.

    export.json         where it comes from, the SHA-256 of every other file, and one over all of that
    gate_report.json    what the gate of the first registry said; left out where there was none
    release/            the files of the release, manifest.json among them

What arrives is a candidate: the report of elsewhere is kept to be read, and its gate is run again before a promotion.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.whole_file import whole_directory, write_whole, written_whole
from registry.database_url import shown
from registry.errors import DamagedExport, NoRoom, RefusedName, RegistryError, lacks_room
from registry.gate_report import GateReport
from registry.manifest import MANIFEST, file_digest, read_manifest, verify
from registry.names import ReleaseName, checked_name, current_actor, registered_names
from registry.printable import printable
from registry.release import Release, check_backbone, load_release, mark_candidate, publish, published
from registry.tracking import Tracking
from registry.verdicts import recorded_report, version_tags

INDEX, REPORT, FILES = "export.json", "gate_report.json", "release"
ORIGIN_TAG, ORIGIN_REPORT_TAG = "graftline.origin", "graftline.origin.gate_report"
ARCHIVES = (".tar", ".tar.gz", ".tgz")
MAX_FILES, MAX_JSON = 1000, 2**23  # of an archive; bytes of what is read as one value
# What tarfile lets through of a damaged archive, or of a name or a time that no file can have.
_UNREADABLE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Export(_Value):
    """The index of an export. `sha256` is over all the rest of it, and so over every file."""

    format_version: int = 1
    name: str
    version: int
    registry: str  # without a password
    exported_by: str
    exported: str  # UTC, ISO 8601
    gate_verdict: str | None  # None: it was never gated there
    files: dict[str, str]
    sha256: str = ""

    def digest(self) -> str:
        said = self.model_dump(exclude={"sha256"})
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Origin(_Value):
    """Where an imported version comes from; kept as a tag of the version."""

    name: str
    version: int
    registry: str
    sha256: str
    exported_by: str
    exported: str
    imported_by: str
    gate_verdict: str | None

    @property
    def sentence(self) -> str:
        gate = (
            "was not gated there" if self.gate_verdict is None else f"its gate there: {self.gate_verdict}, which does not count"
        )
        return printable(f"from {self.name}@{self.version} of {self.registry}; {gate}")


@dataclass(frozen=True)
class Imported:
    """`is_new` False: these very files were published under the name before, and nothing was done."""

    release: Release
    origin: Origin
    report: GateReport | None
    is_new: bool


def export_release(tracking: Tracking, named: ReleaseName, target: Path) -> Export:
    """Writes the release to `target`, which is not there yet: an archive where it ends as one of ARCHIVES, else a folder."""
    if target.exists():
        raise DamagedExport(f"An export makes its file or folder, but {target} is there already. Name another one.")
    release, report = load_release(tracking, named.name, named.version), recorded_report(tracking, named)
    if not target.name.endswith(ARCHIVES):
        with whole_directory(target) as part:
            return _write(tracking, release, report, part)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export = _write(tracking, release, report, folder)
        with written_whole(target) as part, tarfile.open(part, "w" if target.suffix == ".tar" else "w:gz") as archive:
            for file in _files(folder):
                archive.add(folder / file, file, filter=_plain)
    return export


def import_release(
    tracking: Tracking, source: Path, name: str | None = None, *, sha256: str | None = None, backbone: str | None = None
) -> Imported:
    """Publishes an export as a candidate, under its own name unless another one is given.

    DamagedExport unless every file is there as it was exported, and under `sha256` where that is given; BackboneMismatch (of
    registry.release) unless it was fitted on the backbone with the fingerprint `backbone`, where that is given. Nothing is
    published then.
    """
    with opened(source) as folder:
        export, report = verify_export(folder, source, sha256)
        target = checked_name(name or export.name)
        if backbone is not None:
            check_backbone(Release(target, export.version, folder / FILES, read_manifest(folder / FILES), None), backbone)
        origin = Origin(
            **export.model_dump(include={"name", "version", "registry", "sha256", "exported_by", "exported", "gate_verdict"}),
            imported_by=current_actor(),
        )
        earlier = _published(tracking, target, folder / FILES)
        if earlier is not None:
            return Imported(earlier, origin, report, False)
        told = {ORIGIN_TAG: origin.model_dump_json()}
        if report is not None:
            told[ORIGIN_REPORT_TAG] = report.canonical()
        made = publish(tracking, target, folder / FILES, version_tags=told)
    mark_candidate(tracking, made.full_name)
    return Imported(made, origin, report, True)


def copy_release(tracking: Tracking, named: ReleaseName, target: Tracking, name: str | None = None) -> Imported:
    """Both steps at once."""
    if target.uri == tracking.uri and name in (None, named.name):
        raise RefusedName(f"A copy goes to another registry or another name, but {named} is there already. Name one of them.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        export_release(tracking, named, folder)
        return import_release(target, folder, name)


def proved_release(source: Path, sha256: str | None = None) -> Release:
    """What a whole export holds, under its name of elsewhere; DamagedExport otherwise. Nothing is published."""
    with opened(source) as folder:
        export, _ = verify_export(folder, source, sha256)
        return Release(export.name, export.version, source, verify(folder / FILES), None)


def origin_of(tags: dict[str, str]) -> Origin | None:
    """Of a version's tags; None where it was published here, or cannot be read."""
    try:
        return Origin.model_validate_json(tags[ORIGIN_TAG])
    except (KeyError, ValidationError):
        return None


def origin_report(tracking: Tracking, release: ReleaseName) -> GateReport | None:
    """What the gate of elsewhere said of an imported version. No promotion reads it."""
    stored = version_tags(tracking, release).get(ORIGIN_REPORT_TAG)
    return None if stored is None else GateReport.model_validate_json(stored)


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder of an export; of an archive, one that is gone afterwards."""
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(source) as archive:
                for number, member in enumerate(archive, start=1):
                    _refuse_strange(member, number, source, Path(scratch))
                    archive.extract(member, scratch, filter="data")
        except RegistryError:
            raise
        except _UNREADABLE as error:
            if lacks_room(error):
                raise NoRoom(f"An export is unpacked before it is proved, but there is no room for {source}: {error}.") from error
            if isinstance(error, FileNotFoundError) and not source.exists():
                raise DamagedExport(f"An export is a folder or an archive, but {source} is not there. Check the path.") from error
            raise DamagedExport(f"{source} must be an export, but cannot be read ({error}). Export it again.") from error
        yield Path(scratch)


def _refuse_strange(member: tarfile.TarInfo, number: int, source: Path, scratch: Path) -> None:
    """What no export holds, before anything of it is written."""
    if not member.isfile() and not member.isdir():
        raise DamagedExport(f"An export holds plain files, but {source} holds {member.name!r}. Export it again.")
    if number > MAX_FILES:
        raise DamagedExport(f"An export holds at most {MAX_FILES} files, but {source} holds more. Export it again.")
    if member.size > (free := shutil.disk_usage(scratch).free):
        raise NoRoom(
            f"An export is unpacked before it is proved, but {member.name!r} in {source} has {member.size:,} bytes, and there "
            f"are {free:,} free in {scratch.parent}. Make room there, or set TMPDIR to where there is more."
        )


def _read_json(folder: Path, name: str, source: Path) -> str:
    """OSError and UnicodeDecodeError as for any file."""
    size = (folder / name).stat().st_size
    if size > MAX_JSON:
        raise DamagedExport(
            f"{name} of an export has at most {MAX_JSON:,} bytes, but that of {source} has {size:,}. Export it again."
        )
    return (folder / name).read_text(encoding="utf-8")


def verify_export(folder: Path, source: Path, sha256: str | None = None) -> tuple[Export, GateReport | None]:
    """The index and the gate report, once every file is proved to be what was exported and no other file is there."""
    try:
        export = Export.model_validate_json(_read_json(folder, INDEX, source))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DamagedExport(f"An export has a readable {INDEX}, but {source} has none. `graftline export` makes one.") from error
    if export.format_version != 1:
        raise DamagedExport(
            f"This version reads exports of format 1, but {source} is of {export.format_version}. Update Graftline."
        )
    if export.digest() != export.sha256:
        raise DamagedExport(f"The index of an export matches its SHA-256, but that of {source} was changed. Export it again.")
    if sha256 is not None and export.sha256 != sha256.strip().lower():
        raise DamagedExport(
            f"{source} was to have the SHA-256 {sha256[:16]}..., but has {export.sha256[:16]}...: it is another one. Ask "
            "for the right one."
        )
    present = {file for file in _files(folder) if file != INDEX}
    for file, expected in export.files.items():
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise DamagedExport(f"An export names files below itself, but {source} names {file!r}. Export it again.")
        if file not in present:
            raise DamagedExport(f"Every file of an export is there, but {file} is missing in {source}. Export it again.")
        if file_digest(folder / file) != expected:
            raise DamagedExport(f"Every file of an export matches its SHA-256, but {file} in {source} does not. Export it again.")
    if added := sorted(present - set(export.files)):
        raise DamagedExport(f"An export holds only what its index names, but {source} also has {added[0]}. Export it again.")
    if f"{FILES}/{MANIFEST}" not in export.files:
        raise DamagedExport(f"An export holds a release with its manifest, but {source} has none. Export it again.")
    if links := sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_symlink()):
        raise DamagedExport(f"An export holds plain files, but {source} holds the link {links[0]}. Export it again.")
    _read_json(folder, f"{FILES}/{MANIFEST}", source)
    return export, _report(folder, export, source)


def _report(folder: Path, export: Export, source: Path) -> GateReport | None:
    if REPORT not in export.files:
        return None
    try:
        return GateReport.model_validate_json(_read_json(folder, REPORT, source))
    except (UnicodeDecodeError, ValidationError) as error:
        raise DamagedExport(
            f"The gate report of {source} was written by another version of Graftline. Export it again by this one, or leave "
            f"{REPORT} out there."
        ) from error


def _write(tracking: Tracking, release: Release, report: GateReport | None, folder: Path) -> Export:
    shutil.copytree(release.directory, folder / FILES, copy_function=shutil.copyfile)
    if report is not None:
        write_whole(folder / REPORT, report.canonical())
    export = Export(
        name=release.name,
        version=release.version,
        registry=shown(tracking.uri),
        exported_by=current_actor(),
        exported=datetime.now(UTC).isoformat(timespec="seconds"),
        gate_verdict=None if report is None else report.verdict,
        files={file: file_digest(folder / file) for file in _files(folder)},
    )
    export = export.model_copy(update={"sha256": export.digest()})
    write_whole(folder / INDEX, export.model_dump_json(indent=2))
    return export


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without whose it was and when: the same release gives the same bytes beside its index."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _published(tracking: Tracking, name: str, directory: Path) -> Release | None:
    return published(tracking, name, directory) if name in registered_names(tracking) else None
