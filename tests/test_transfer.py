"""A release in another registry: every byte is proved, its gate elsewhere never counts, what is not whole is not taken."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gated_names import NAME, report
from small_releases import write_directory
from stores import store_at

from registry import transfer
from registry.errors import BackboneMismatch, DamagedExport, DamagedRelease, NoRegistry, NoRoom, PromotionRefused, RefusedName
from registry.ledger import Ledger
from registry.names import ReleaseName, registered_names, resolve
from registry.release import Release, load_release, publish
from registry.status import name_status
from registry.tracking import Tracking
from registry.transfer import INDEX, MAX_FILES, REPORT, copy_release, export_release, import_release, origin_report
from registry.verdicts import record_verdict, recorded_report, report_of_same_files
from service.audit import read_audit
from service.commands.transfer import copy, export, import_

ONE = ReleaseName(NAME, 1)


def published_at(home: Path) -> Tracking:
    tracking = store_at(home)
    publish(tracking, NAME, write_directory(home / "adapter"))
    record_verdict(tracking, ONE, report(1))
    return tracking


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_at(tmp_path_factory.mktemp("made")).cache.parent


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Tracking:
    """medicine@1, whose gate passed here. Its files stay where they were made: nothing writes to them."""
    home = tmp_path / "here"
    home.mkdir()
    shutil.copy(made / "mlflow.db", home)
    (home / "releases").symlink_to(made / "releases")
    return Tracking.at(home)


@pytest.fixture
def there(tmp_path: Path) -> Tracking:
    return store_at(tmp_path / "there")


def files_of(release: Release) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in release.directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("target", ["folder", "file.tar.gz"])
def test_what_was_exported_is_a_candidate_elsewhere_with_the_same_files(
    here: Tracking, there: Tracking, tmp_path: Path, target: str
) -> None:
    made = export_release(here, ONE, tmp_path / target)
    done = import_release(there, tmp_path / target, sha256=made.sha256, backbone="f" * 64)
    assert done.is_new and done.release.full_name == resolve(there, f"{NAME}@candidate") == ONE
    original = files_of(import_release(here, tmp_path / target).release)
    assert files_of(done.release) == original and done.release.run_id is None
    [shown] = name_status(there, NAME).candidates
    assert shown.origin is not None and f"{NAME}@1 of sqlite" in shown.origin and "does not count" in shown.origin


def test_the_gate_of_elsewhere_is_kept_to_be_read_and_promotes_nothing(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    done = import_release(there, tmp_path / "out", "law")
    assert (
        done.report
        == origin_report(there, done.release.full_name)
        == report(1).model_copy(update={"elapsed_s": done.report.elapsed_s if done.report else 0})
    )
    assert recorded_report(there, done.release.full_name) is None
    assert report_of_same_files(there, done.release.full_name) is None
    assert name_status(there, "law").candidates[0].verdict == "not gated"
    with pytest.raises(PromotionRefused, match="not gated"):
        Ledger(there, "law").promote(1, recorded_report(there, done.release.full_name))
    with pytest.raises(PromotionRefused, match="about medicine@1, not law@1"):
        Ledger(there, "law").promote(1, done.report)


def test_the_same_files_are_imported_once(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    first, second = (import_release(there, tmp_path / "out") for _ in range(2))
    assert (first.is_new, second.is_new, second.release.full_name) == (True, False, first.release.full_name)
    assert len(name_status(there, NAME).candidates) == 1


def edited(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes())) and None


def rehashed(folder: Path) -> None:
    """Weights with another hash in the index, whose own digest is right again: the manifest still knows."""
    from registry.manifest import file_digest
    from registry.transfer import Export

    weights = folder / "release/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    told = Export.model_validate_json((folder / INDEX).read_text())
    told = told.model_copy(update={"files": {**told.files, "release/adapter_model.safetensors": file_digest(weights)}})
    (folder / INDEX).write_text(told.model_copy(update={"sha256": told.digest()}).model_dump_json())


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            edited("release/adapter_model.safetensors", lambda told: told[:-1] + b"\x01"),
            "adapter_model.* does not",
        ),
        (edited(REPORT, lambda told: told.replace(b"pass", b"fail")), f"{REPORT} in .* does not"),
        (edited(INDEX, lambda told: told.replace(b'"version": 1', b'"version": 2')), "was changed"),
        (edited(INDEX, lambda told: told[:40]), "has none"),
        (lambda folder: (folder / "release/README.md").unlink(), "README.md is missing"),
        (lambda folder: (folder / "more.txt").write_text("x") and None, "also has more.txt"),
        (lambda folder: (folder / "release/link").symlink_to("/etc/passwd"), "also has release/link"),
        (rehashed, "must match its SHA-256"),
    ],
)
def test_an_export_that_is_not_whole_publishes_nothing(
    here: Tracking, there: Tracking, tmp_path: Path, damage: Callable[[Path], None], match: str
) -> None:
    export_release(here, ONE, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises((DamagedExport, DamagedRelease), match=match):
        import_release(there, tmp_path / "out")
    assert registered_names(there) == []


def test_another_export_than_the_one_that_was_announced_is_refused(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    with pytest.raises(DamagedExport, match="another one"):
        import_release(there, tmp_path / "out", sha256="0" * 64)


def test_a_release_of_another_backbone_is_refused(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    with pytest.raises(BackboneMismatch, match="ffffffffffff"):
        import_release(there, tmp_path / "out", backbone="0" * 64)
    assert registered_names(there) == []


def test_an_archive_writes_nothing_outside_and_holds_no_links(there: Tracking, tmp_path: Path) -> None:
    for number, name in enumerate(("../escaped", "link")):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            if name == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(DamagedExport):
            import_release(there, tmp_path / f"{number}.tar")
    assert not (tmp_path / "escaped").exists()
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for source in ("cut.tar.gz", "nowhere"):
        with pytest.raises(DamagedExport):
            import_release(there, tmp_path / source)


def archived(file: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for member, told in members:
            archive.addfile(member, io.BytesIO(told))
    return file


def member_of(name: str, **values: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for field, value in values.items():
        setattr(found, field, value)
    return found


def test_a_name_or_a_time_that_no_file_can_have_is_a_damaged_export(there: Tracking, tmp_path: Path) -> None:
    strange = [
        member_of("a", pax_headers={"path": "a\0b"}),
        member_of("a", mtime=2**70),
        member_of("a" * 300),
        member_of("/etc/x/../y"),
    ]
    for number, member in enumerate(strange):
        with pytest.raises(DamagedExport):
            import_release(there, archived(tmp_path / f"{number}.tar", [(member, b"")]))
    assert registered_names(there) == [] and not Path("/etc/y").exists()


def test_of_an_archive_in_which_a_byte_turned_all_or_nothing_is_taken(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out.tar.gz")
    whole, refused = (tmp_path / "out.tar.gz").read_bytes(), 0
    for place in range(12, len(whole), len(whole) // 12):
        (tmp_path / "bad.tar.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            done = import_release(there, tmp_path / "bad.tar.gz")
        except (DamagedExport, DamagedRelease, NoRoom):
            refused += 1
        else:  # a byte of the archive's own name, say
            assert files_of(done.release) == files_of(load_release(here, NAME, 1))
    assert refused >= 8


def test_what_is_larger_than_any_export_is_refused_before_it_is_written(there: Tracking, tmp_path: Path) -> None:
    large = member_of("release/weights", size=2**60)
    (tmp_path / "large.tar").write_bytes(large.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(NoRoom, match="1,152,921,504,606,846,976 bytes.*TMPDIR"):
        import_release(there, tmp_path / "large.tar")
    many = [(member_of(f"release/{number}"), b"") for number in range(MAX_FILES + 1)]
    with pytest.raises(DamagedExport, match=f"at most {MAX_FILES} files"):
        import_release(there, archived(tmp_path / "many.tar", many))
    assert registered_names(there) == []


@pytest.mark.parametrize("file", [INDEX, REPORT, "release/manifest.json"])
def test_a_huge_value_is_not_read(
    here: Tracking, there: Tracking, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_release(here, ONE, tmp_path / "out")
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in (INDEX, REPORT, "release/manifest.json")}
    monkeypatch.setattr(transfer, "MAX_JSON", sizes[file] - 1)
    larger = [name for name in sizes if sizes[name] >= sizes[file]]
    with pytest.raises(DamagedExport, match=f"({'|'.join(larger)}) of an export has at most"):
        import_release(there, tmp_path / "out")
    assert registered_names(there) == []


def test_a_folder_behind_a_link_is_no_part_of_an_export(here: Tracking, there: Tracking, tmp_path: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (tmp_path / "out" / "release" / "more").symlink_to(tmp_path / "private")
    with pytest.raises((DamagedExport, DamagedRelease), match="release/more"):
        import_release(there, tmp_path / "out")
    assert registered_names(there) == []


def test_nothing_is_written_over_and_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    here = published_at(tmp_path / "here")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(DamagedExport, match="is there already"):
        export_release(here, ONE, tmp_path / "taken")
    shutil.rmtree(here.cache)
    shutil.rmtree(tmp_path / "here" / "artifacts")
    for target in ("out", "out.tar"):
        with pytest.raises(DamagedRelease):
            export_release(here, ONE, tmp_path / target)
        assert not (tmp_path / target).exists()


def test_a_copy_is_both_steps_and_needs_another_place(here: Tracking, there: Tracking) -> None:
    done = copy_release(here, ONE, there, "law")
    assert str(done.release.full_name) == "law@1" and done.origin.name == NAME
    with pytest.raises(RefusedName, match="another registry or another name"):
        copy_release(here, ONE, here)


def test_a_damaged_export_makes_no_home(here: Tracking, tmp_path: Path, backbone_directory: Path) -> None:
    export_release(here, ONE, tmp_path / "out")
    with pytest.raises(BackboneMismatch):
        import_(tmp_path / "out", None, None, str(backbone_directory), tmp_path / "new", None, as_json=True)
    (tmp_path / "out" / INDEX).write_text("{}")
    with pytest.raises(DamagedExport):
        import_(tmp_path / "out", None, None, None, tmp_path / "new", None, as_json=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_by_command_an_export_tells_its_digest_and_an_import_leaves_a_line(
    here: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(str(ONE), tmp_path / "out.tar.gz", tmp_path / "here", None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    import_(tmp_path / "out.tar.gz", "law", told["sha256"], None, tmp_path / "new", None, as_json=True)
    printed = capsys.readouterr()
    done = json.loads(printed.out)
    assert (done["release"], done["new"], done["gate_report_of_origin"]["verdict"]) == ("law@1", True, "pass")
    assert "'tiny' is not on this machine" in printed.err
    copy(str(ONE), str(tmp_path / "new"), None, tmp_path / "here", None, as_json=False)
    said = capsys.readouterr().out
    assert "its gate there: pass, which does not count" in said
    assert f"next: graftline promote {NAME}@1 --home {tmp_path / 'new'}\n" in said
    assert [line.act for line in read_audit(tmp_path / "new")[0]] == ["release.import"]
    assert [line.act for line in read_audit(tmp_path / "here")[0]] == ["release.copy"]


def test_a_server_without_its_scheme_is_no_new_home(here: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoRegistry, match="Try http://mlflow.example:5000"):
        copy(str(ONE), "mlflow.example:5000", None, here.cache.parent, None, as_json=True)
    assert not list(tmp_path.glob("mlflow*"))
