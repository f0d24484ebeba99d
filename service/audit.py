"""The audit log: who did which administrative act, when, and how it ended. A line of JSON each, only ever appended.

    with parts.audit.during(request, "adapter.load", "law@2") as act:
        act.detail["slot"] = load()          # what is raised here is the outcome, and goes on

The line is on its way to the disk before the act is answered; where it cannot be written, the act is refused or its answer is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service.caller import ANYONE, Caller, caller_of
from service.errors import ApiError
from service.request_ids import request_id

AUDIT_LOG = "audit.jsonl"
MAX_TEXT = 500

Outcome = Literal["done", "refused", "failed", "cancelled"]


class Entry(BaseModel):
    """One act. `act` is THING.VERB: key.create, key.revoke, adapter.load, adapter.unload, release.promote, job.create, ..."""

    model_config = ConfigDict(frozen=True)

    at: str  # UTC, ISO 8601
    act: str
    target: str
    outcome: Outcome
    key: str | None = None  # the id of the key, never its secret; None: no key was asked for, or nobody asked
    who: str = ANYONE.name  # the key's name, user@command line, or the service itself
    request_id: str | None = None
    reason: str | None = None  # why it was refused or failed
    detail: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass
class Act:
    """What `during` writes at its end; `detail` is the caller's to fill."""

    detail: dict[str, JsonValue] = field(default_factory=dict)
    outcome: Outcome = "done"
    reason: str | None = None


class AuditUnavailable(ApiError):
    """An act that cannot be recorded is not done."""

    def __init__(self, error: OSError) -> None:
        # The client learns no path of the server.
        message = f"Every administrative act is recorded, but the audit log cannot be written ({error.strerror or 'I/O error'})."
        ways = "Free space or correct the rights in the server's home directory, then ask again."
        super().__init__(503, f"{message} {ways}", "audit_unavailable", None, "server_error")


class AuditLog:
    """The file is opened for every line: a rotation that moves it away begins a new one. Several processes may append."""

    def __init__(self, home: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.file = home / AUDIT_LOG
        self._now = now

    @contextlib.contextmanager
    def during(self, request: Request, act: str, target: str) -> Iterator[Act]:
        """Records what the block does for a request: done, or refused, failed or cancelled by what it raises."""
        with self._recorded(act, target, caller_of(request), request_id(request)) as found:
            yield found

    @contextlib.contextmanager
    def by_service(self, act: str, target: str) -> Iterator[Act]:
        """As `during`, for what the service does of its own accord, such as an automatic rollback."""
        with self._recorded(act, target, Caller(None, "service", frozenset()), None) as found:
            yield found

    @contextlib.contextmanager
    def by_user(self, act: str, target: str, user: str) -> Iterator[Act]:
        """As `during`, for a command of somebody on the server's machine."""
        with self._recorded(act, target, Caller(None, f"{user}@command line", frozenset()), None) as found:
            yield found

    def write(self, entry: Entry) -> None:
        """One line in one write; AuditUnavailable when it is not wholly there."""
        line = json.dumps(entry.model_dump(exclude_none=True)) + "\n"
        try:
            _append(self.file, line.encode())
        except OSError as error:
            raise AuditUnavailable(error) from error

    @contextlib.contextmanager
    def _recorded(self, act: str, target: str, caller: Caller, request: str | None) -> Iterator[Act]:
        found = Act()
        try:
            _append(self.file, b"")  # refused before anything is done
        except OSError as error:
            raise AuditUnavailable(error) from error
        try:
            yield found
        except ApiError as error:
            found.outcome, found.reason = "refused" if error.status < 500 else "failed", error.message
            raise
        except Exception as error:
            found.outcome, found.reason = "failed", f"{type(error).__name__}: {error}"
            raise
        except BaseException:
            found.outcome = "cancelled"
            raise
        finally:
            at, reason = self._now().isoformat(timespec="milliseconds"), found.reason and found.reason[:MAX_TEXT]
            who = Entry(at=at, act=act, target=target[:MAX_TEXT], outcome=found.outcome, key=caller.key, who=caller.name)
            self.write(who.model_copy(update={"request_id": request, "reason": reason, "detail": found.detail}))


def read_audit(home: Path) -> tuple[list[Entry], int]:
    """All entries in the order of writing, and how many lines cannot be read (a write that a full disk cut short)."""
    entries: list[Entry] = []
    damaged = 0
    file = home / AUDIT_LOG
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return entries, damaged


def _append(file: Path, line: bytes) -> None:
    """With O_APPEND the kernel places every write at the end: lines of several processes never mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(opened).st_size
        if line and size and os.pread(opened, 1, size - 1) != b"\n":
            line = b"\n" + line  # the line before was cut short: only it is lost
        if os.write(opened, line) != len(line):
            raise OSError(28, "No space left on device")
    finally:
        os.close(opened)
