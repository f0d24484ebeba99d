"""The audit log: every administrative act is a line, and no line is ever taken away."""

from __future__ import annotations

import asyncio
import resource
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.requests import Request

from service.audit import AUDIT_LOG, MAX_TEXT, AuditLog, AuditUnavailable, read_audit
from service.caller import Caller, Scope
from service.errors import ApiError

ROOT = Path(__file__).parent.parent
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path, now=lambda: NOON)


@pytest.fixture
def request_of_ops() -> Request:
    caller = Caller("0a1b2c3d", "ops", frozenset({Scope.ADMIN}))
    return Request({"type": "http", "headers": [], "graftline.caller": caller, "state": {"request_id": "r-1"}})


def test_an_act_says_who_what_when_and_how_it_ended(log: AuditLog, tmp_path: Path, request_of_ops: Request) -> None:
    with log.during(request_of_ops, "adapter.load", "law@2") as act:
        act.detail["rank"] = 8
    ((entry,), damaged) = read_audit(tmp_path)
    assert (entry.key, entry.who, entry.request_id, entry.at) == ("0a1b2c3d", "ops", "r-1", "2026-01-02T12:00:00.000+00:00")
    assert (entry.act, entry.target, entry.outcome, entry.detail, damaged) == ("adapter.load", "law@2", "done", {"rank": 8}, 0)


def test_a_refused_act_is_recorded_with_its_reason(log: AuditLog, tmp_path: Path, request_of_ops: Request) -> None:
    with pytest.raises(ApiError), log.during(request_of_ops, "adapter.load", "law@9"):
        raise ApiError(404, "law@9 does not exist.", "model_not_found")
    ((entry,), _) = read_audit(tmp_path)
    assert (entry.outcome, entry.reason) == ("refused", "law@9 does not exist.")


def test_an_act_that_fails_is_recorded_as_failed(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), log.by_service("release.rollback", "law"):
        raise ZeroDivisionError("rate")
    ((entry,), _) = read_audit(tmp_path)
    assert (entry.who, entry.outcome, entry.reason) == ("service", "failed", "ZeroDivisionError: rate")


def test_an_act_that_the_server_could_not_do_has_failed_and_is_not_refused(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(ApiError), log.by_service("release.rollback", "law"):
        raise ApiError(503, "The registry does not answer.", "registry_unreachable")
    ((entry,), _) = read_audit(tmp_path)
    assert (entry.outcome, entry.reason) == ("failed", "The registry does not answer.")


def test_an_act_that_is_cut_off_is_not_done(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(asyncio.CancelledError), log.by_service("release.rollback", "law"):
        raise asyncio.CancelledError
    ((entry,), _) = read_audit(tmp_path)
    assert entry.outcome == "cancelled"


def test_a_line_is_bounded_whatever_a_client_names(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(ValueError), log.by_service("adapter.load", "x" * 10**5):
        raise ValueError("y" * 10**5)
    ((entry,), _) = read_audit(tmp_path)
    assert (len(entry.target), len(entry.reason or "")) == (MAX_TEXT, MAX_TEXT)


def test_a_line_that_does_not_fit_on_the_disk_is_no_record(log: AuditLog, tmp_path: Path) -> None:
    with log.by_service("release.rollback", "law"):
        pass
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.file.stat().st_size + 20, before[1]))  # a disk with 20 bytes left
    try:
        with pytest.raises(AuditUnavailable), log.by_service("release.rollback", "tax"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    entries, damaged = read_audit(tmp_path)
    assert ([entry.target for entry in entries], damaged) == (["law"], 1)


def test_an_act_that_cannot_be_recorded_is_not_done(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file where the home directory should be")
    done = []
    with pytest.raises(AuditUnavailable, match="audit log cannot be written"), AuditLog(home).by_user("key.create", "k", "ada"):
        done.append("act")
    assert not done


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.audit import AuditLog\n"
        f"log = AuditLog(Path({str(tmp_path)!r}))\n"
        "for number in range(100):\n"
        "    with log.by_user('job.create', 'x' * 400, sys.argv[1]): pass"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=ROOT) for number in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    entries, damaged = read_audit(tmp_path)
    assert (len(entries), damaged) == (200, 0)


def test_a_rotated_log_begins_anew(log: AuditLog, tmp_path: Path) -> None:
    with log.by_service("release.rollback", "law"):
        pass
    log.file.rename(tmp_path / "audit.1")
    with log.by_service("release.rollback", "tax"):
        pass
    assert [entry.target for entry in read_audit(tmp_path)[0]] == ["tax"]


def test_a_line_that_was_cut_short_costs_no_other_line(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / AUDIT_LOG).write_text('{"at": "2026-01-')
    with log.by_service("release.rollback", "law"):
        pass
    entries, damaged = read_audit(tmp_path)
    assert ([entry.target for entry in entries], damaged) == (["law"], 1)


def test_a_target_cannot_forge_a_line(log: AuditLog, tmp_path: Path) -> None:
    with log.by_service("adapter.load", 'x\n{"act": "key.create"}\u2028'):
        pass
    assert len((tmp_path / AUDIT_LOG).read_text().splitlines()) == 1


def test_only_the_owner_reads_the_log(log: AuditLog) -> None:
    with log.by_service("release.rollback", "law"):
        pass
    assert stat.S_IMODE(log.file.stat().st_mode) == 0o600
