"""Runs in the store: by id, from any process, and one sentence when there is no store."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import store_at

from registry.errors import RegistryUnreachable, StoreRefused
from registry.tracking import TRACKING_VARIABLE, Tracking, store_in


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return store_at(tmp_path)


def test_a_child_run_names_its_parent_and_keeps_what_was_logged(tracking: Tracking, tmp_path: Path) -> None:
    parent = tracking.start_run("medicine", "study", tags={"optuna.study": "medicine"})
    child = tracking.start_run("medicine", "trial 0", parent=parent)
    tracking.log_params(child, {f"p{i}": i for i in range(150)})
    tracking.log_metrics(child, {"domain/accuracy": 0.5}, step=3)
    tracking.set_tags(child, {"data_digest": "abc"})
    tracking.log_dict(child, {"a": 1}, "result.json")
    (tmp_path / "table.txt").write_text("x")
    tracking.log_artifact(child, tmp_path / "table.txt")
    tracking.end_run(child)
    tracking.end_run(parent, "FAILED")
    with tracking.client() as client:
        run = client.get_run(child)
        assert run.data.tags["mlflow.parentRunId"] == parent and run.data.tags["data_digest"] == "abc"
        assert len(run.data.params) == 150 and run.data.metrics == {"domain/accuracy": 0.5}
        assert {found.path for found in client.list_artifacts(child)} == {"result.json", "table.txt"}
        assert (run.info.status, client.get_run(parent).info.status) == ("FINISHED", "FAILED")


def test_artifacts_lie_in_the_home_and_no_file_store_appears(tracking: Tracking, tmp_path: Path) -> None:
    run = tracking.start_run("medicine", "a run")
    tracking.log_text(run, "words", "note.txt")
    assert [file.read_text() for file in (tmp_path / "artifacts").rglob("note.txt")] == ["words"]
    assert not list(tmp_path.rglob("mlruns"))


def test_processes_that_start_at_once_on_a_fresh_store_all_get_their_run(tmp_path: Path) -> None:
    # MLflow is imported once, so that the three are at the store at the same moment.
    code = (
        "import os, sys; from pathlib import Path; import mlflow.store.tracking.sqlalchemy_store; "
        "from registry.tracking import Tracking\n"
        "for name in '012':\n"
        "    if not os.fork():\n"
        "        os.write(1, f\"{Tracking.at(Path(sys.argv[1])).start_run('study', name)}\\n\".encode())\n"
        "        os._exit(0)\n"
        "print([os.wait()[1] for _ in '012'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    *runs, ended = done.stdout.splitlines()
    assert ended == "[0, 0, 0]" and len(set(runs)) == 3, done.stderr


def test_a_server_that_is_not_there_is_one_sentence_soon(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=f"127.0.0.1:{port}.*Start the server"):
        Tracking.at(tmp_path, f"http://127.0.0.1:{port}").create()
    assert time.monotonic() - began < 20


def test_a_server_that_never_answers_a_request_is_unreachable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match="must answer"):
            Tracking.at(tmp_path, uri).create()


def test_a_file_that_is_no_database_is_unreachable_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are not the rows you are looking for")
    with pytest.raises(RegistryUnreachable, match="not an SQLite database"):
        Tracking.at(tmp_path).create()
    assert (tmp_path / "mlflow.db").read_text().startswith("these are not")


def test_a_home_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryUnreachable, match="home directory"):
        Tracking.at(tmp_path / "file" / "home").create()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_the_file_store_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RegistryUnreachable, match="file store"):
        Tracking.at(tmp_path, uri).create()


def test_a_password_in_the_uri_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable) as raised:
        Tracking.at(tmp_path, "postgresql://me:secret@127.0.0.1:1/db").create()
    assert "secret" not in str(raised.value) and ":***@" in str(raised.value)


def test_the_environment_names_the_store_that_no_option_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, option = "http://mlflow:5000", "http://elsewhere:5000"
    monkeypatch.setenv(TRACKING_VARIABLE, server)
    assert Tracking.at(tmp_path).uri == server and Tracking.at(tmp_path, option).uri == option
    assert Tracking.at(tmp_path, store_in(tmp_path)).artifact_root == str(tmp_path / "artifacts")
    monkeypatch.setenv(TRACKING_VARIABLE, "")
    assert Tracking.at(tmp_path).uri == store_in(tmp_path)


def test_what_the_store_refuses_is_an_error_of_ours(tracking: Tracking) -> None:
    run = tracking.start_run("medicine", "a run")
    tracking.log_params(run, {"rank": 8})
    with pytest.raises(StoreRefused, match="refused a call: .*rank"):
        tracking.log_params(run, {"rank": 16})


def test_artifacts_that_cannot_be_written_are_an_error_of_ours(tracking: Tracking, tmp_path: Path) -> None:
    run = tracking.start_run("medicine", "a run")
    (tmp_path / "artifacts").write_text("in the way")
    with pytest.raises(RegistryUnreachable):
        tracking.log_text(run, "words", "note.txt")


def test_a_run_that_goes_on_is_running_again(tracking: Tracking) -> None:
    run = tracking.start_run("medicine", "study")
    tracking.end_run(run, "FAILED")
    tracking.reopen_run(run)
    with tracking.client() as client:
        assert client.get_run(run).info.status == "RUNNING"
