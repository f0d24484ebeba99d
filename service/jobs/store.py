"""Jobs on disk, a directory each: who restarts finds them as they were, and several processes may read them."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from adapters.whole_file import whole_directory, write_whole
from service.jobs.record import PREFIX, Job, JobEvent, Kind, Outcome

JOB, EVENTS, RESULT, CANCEL, LOCK, COMMITTING, LOG = (
    "job.json",
    "events.jsonl",
    "result.json",
    "cancel",
    "lock",
    "committing",
    "log.txt",
)
V = TypeVar("V", bound=BaseModel)
Fill = Callable[[Path, str], None]  # writes what a job's process reads: into that directory, for the job of that id
_last_order, _ordering = 0, threading.Lock()


def ordered_id(prefix: str) -> str:
    """A new id, after all that were made before it, whatever the clock's resolution."""
    global _last_order
    with _ordering:
        _last_order = max(_last_order + 1, time.time_ns())
        return f"{prefix}-{_last_order:016x}{secrets.token_hex(4)}"


class JobStore:
    """Only who runs the jobs writes `job.json`; a job's process writes its events and its result."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ended: dict[str, Job] = {}  # these change no more

    def place(self, job_id: str) -> Path:
        return self.directory / job_id

    def create(self, kind: Kind, request: dict[str, JsonValue], actor: str, fill: Fill = lambda _, __: None) -> Job:
        """A queued job, whole or not at all; `fill` adds to its directory."""
        job = Job(id=ordered_id(PREFIX[kind]), kind=kind, created_at=int(time.time()), actor=actor, request=request)
        self.directory.mkdir(parents=True, exist_ok=True)
        with whole_directory(self.place(job.id)) as part:
            fill(part, job.id)
            write_whole(part / JOB, job.model_dump_json())
        self.tell(job.id, "The job is queued.")
        return job

    def ids(self, kind: Kind) -> list[str]:
        """Newest first."""
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        return sorted((name for name in names if name.startswith(f"{PREFIX[kind]}-")), reverse=True)

    def find(self, job_id: str) -> Job | None:
        if job_id in self._ended:
            return self._ended[job_id]
        if not job_id.startswith(tuple(f"{prefix}-" for prefix in PREFIX.values())) or not job_id.replace("-", "").isalnum():
            return None
        found = _read(Job, self.place(job_id) / JOB)
        if found is not None and found.is_final:
            self._ended[job_id] = found
        return found

    def unfinished(self, kind: Kind) -> list[Job]:
        """Oldest first."""
        found = (self.find(job_id) for job_id in reversed(self.ids(kind)) if job_id not in self._ended)
        return [job for job in found if job is not None and not job.is_final]

    def write(self, job: Job) -> None:
        write_whole(self.place(job.id) / JOB, job.model_dump_json())

    def tell(self, job_id: str, message: str) -> None:
        append_event(self.place(job_id), JobEvent(at=time.time(), message=message))

    def events(self, job_id: str) -> list[JobEvent]:
        """Oldest first; a line that a kill cut short is left out."""
        file = self.place(job_id) / EVENTS
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        return [event for event in map(_event, lines) if event is not None]

    def outcome(self, job_id: str) -> Outcome | None:
        return _read(Outcome, self.place(job_id) / RESULT)

    def ask_to_cancel(self, job_id: str, reason: str = "") -> None:
        """Anybody may; who runs the jobs ends it. A reason makes it a failure."""
        if self.cancel_asked_at(job_id) is None:
            write_whole(self.place(job_id) / CANCEL, reason)

    def cancel_reason(self, job_id: str) -> str:
        file = self.place(job_id) / CANCEL
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def cancel_asked_at(self, job_id: str) -> float | None:
        """Seconds since 1970; None: nobody asked."""
        try:
            return (self.place(job_id) / CANCEL).stat().st_mtime
        except FileNotFoundError:
            return None

    def is_committing(self, job_id: str) -> bool:
        """Whether its process is writing to the registry what must be whole."""
        return (self.place(job_id) / COMMITTING).exists()

    def is_alive(self, job_id: str) -> bool:
        """Whether its process runs: it holds the lock from its first moment, and no other process ever does."""
        lock = lock_of(self.place(job_id))
        if lock is None:
            return True
        os.close(lock)
        return False

    def clear(self, job_id: str, *others: Path) -> None:
        """What a job that was ended leaves half done goes away; its record, events and log stay."""
        for place in others:
            shutil.rmtree(place, ignore_errors=True)
        with suppress(FileNotFoundError):
            (self.place(job_id) / COMMITTING).unlink()


def lock_of(place: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None while another one does."""
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def append_event(place: Path, event: JobEvent) -> None:
    """In one write: lines of several processes do not mix."""
    descriptor = os.open(place / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (event.model_dump_json() + "\n").encode())
    finally:
        os.close(descriptor)


def _event(line: str) -> JobEvent | None:
    try:
        return JobEvent.model_validate_json(line)
    except ValidationError:
        return None


def _read(kind: type[V], file: Path) -> V | None:
    """None where the file is not there, or is none of ours: one damaged job does not hide the others."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
