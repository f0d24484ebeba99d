"""The registry through an MLflow server, as a team runs it: the same answers as over SQLite."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import mlflow_server
from small_releases import write_directory

from registry.errors import NoChampion, RegistryUnreachable, UnknownRelease
from registry.ledger import Ledger
from registry.ledger_reader import LedgerReader
from registry.names import registered_names, resolve
from registry.release import load_release, publish
from registry.status import name_status
from registry.tracking import Tracking


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and where it keeps artifacts."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}") as address:
        yield address, folder / "artifacts"


@pytest.fixture
def tracking(server: tuple[str, Path], tmp_path: Path) -> Tracking:
    return Tracking.at(tmp_path / "home", server[0])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "adapter")


def test_a_release_is_published_promoted_loaded_and_rolled_back_through_a_server(
    tracking: Tracking, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tracking.start_run("medicine", "trial 0", parent=tracking.start_run("medicine", "study"))
    tracking.log_dict(run, {"a": 1}, "result.json")
    tracking.end_run(run)
    made = [publish(tracking, "medicine.coding", directory, run) for _ in range(2)]
    shutil.rmtree(tracking.cache)
    assert [load_release(tracking, "medicine.coding", version) for version in (1, 2)] == made
    ledger, reader = Ledger(tracking, "medicine.coding"), LedgerReader(tracking, "medicine.coding")
    with pytest.raises(NoChampion):
        reader.refresh()
    served = []
    for version in (1, 2):
        ledger.promote(version, None, override=True, reason="no gate in this test")
        served.append(reader.refresh())
    ledger.rollback("worse")
    assert [*served, reader.refresh()] == [1, 2, 1]
    assert ledger.drift() is None and name_status(tracking, "medicine.coding").champion == 1
    assert {resolve(tracking, f"medicine.coding{end}").version for end in ("", "@champion", "@v1")} == {1}
    with pytest.raises(UnknownRelease, match="medicine.coding@9"):
        resolve(tracking, "medicine.coding@9")
    assert capfd.readouterr().out == ""


def test_nothing_remains_on_the_server_when_it_refuses_the_version(
    tracking: Tracking, directory: Path, server: tuple[str, Path]
) -> None:
    before = {file for file in server[1].rglob("*") if file.is_file()}
    with pytest.raises(Exception, match="exceeds the maximum"):
        publish(tracking, "law", directory, None, {"k" * 300: "v"})
    assert {file for file in server[1].rglob("*") if file.is_file()} == before
    assert "law" not in registered_names(tracking)


def test_a_server_without_mlflow_is_unreachable(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), "0"]
    process = subprocess.Popen([*command[:1], "-u", *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split("port ")[1].split()[0]
        with pytest.raises(RegistryUnreachable, match="Start the server"):
            Tracking.at(tmp_path, f"http://127.0.0.1:{port}").create()
    finally:
        process.terminate()
        process.communicate()
