"""Who runs the jobs: one at a time of each kind, in a process group of its own, ended whole when it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from service.jobs.record import FINAL, Job, Kind, State
from service.jobs.store import LOG, Fill, JobStore, lock_of

log = logging.getLogger("graftline.jobs")
LOOK_S = 0.5
GRACE_S = 15.0  # that a cancelled job has to put away what it began
COMMIT_GRACE_S = 120.0  # while it writes to the registry
COMMAND = (sys.executable, "-m", "service.jobs.process")
_ROOT = Path(__file__).resolve().parent.parent.parent


class TooManyJobs(RuntimeError):
    """The queue is full."""


class Jobs:
    """Calls block and may come from any thread. Of several services over one home, one runs the jobs and all show them."""

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        at_once: Mapping[Kind, int],
        max_queued: int,
        max_seconds: float,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`environment` makes a job's process read this service's settings; `at_once` is how many of a kind run.

        `command` runs a job when the job's directory is put behind it.
        """
        self._command = tuple(command)
        self.store = JobStore(home / "jobs")
        self._home, self._environment = home, dict(environment)
        self._at_once, self._max_queued, self._max_seconds = at_once, max_queued, max_seconds
        self._lock = threading.RLock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.closed = threading.Event()
        self._mine: int | None = None  # the lock of whoever runs the jobs of this home

    def submit(self, kind: Kind, request: dict[str, JsonValue], actor: str, fill: Fill = lambda _, __: None) -> Job:
        with self._lock:
            waiting = [job for job in self.store.unfinished(kind) if job.state == "queued"]
            if len(waiting) >= self._max_queued:
                raise TooManyJobs(f"At most {self._max_queued} jobs wait, and that many do. Cancel one, or ask again later.")
            job = self.store.create(kind, request, actor, fill)
        self.advance()
        return self.store.find(job.id) or job

    def cancel(self, job_id: str, wait_s: float = GRACE_S + 5) -> Job | None:
        """The job once it has ended, or as it is when that takes too long; None: no such job."""
        job = self.store.find(job_id)
        if job is None or job.is_final:
            return job
        self.store.ask_to_cancel(job_id)
        ends = time.monotonic() + wait_s
        while job is not None and not job.is_final and time.monotonic() < ends:
            self.advance()
            job = self.store.find(job_id)
            if job is not None and not job.is_final:
                time.sleep(0.05)
        return job

    async def follow(self) -> None:
        """Looks after the jobs for ever."""
        while True:
            try:
                await asyncio.to_thread(self.advance)
            except Exception:  # a full disk, say: the next look may do better
                log.exception("A look at the jobs failed; the next one is in %g s", LOOK_S)
            await asyncio.sleep(LOOK_S)

    def advance(self) -> None:
        """One look: what has ended is recorded, what is to end is told so, and what may begin begins."""
        with self._lock:
            if not self._is_mine():
                return
            for kind, at_once in self._at_once.items():
                unfinished = self.store.unfinished(kind)
                running = [job for job in unfinished if job.state == "running" and not self._has_ended(job)]
                for job in [job for job in unfinished if job.state == "queued"]:
                    if self.store.cancel_asked_at(job.id) is not None:
                        self._end(job, "cancelled")
                    elif len(running) < at_once:
                        running.append(self._start(job))

    def _is_mine(self) -> bool:
        if self._mine is None:
            self.store.directory.mkdir(parents=True, exist_ok=True)
            self._mine = lock_of(self.store.directory)
        return self._mine is not None

    def close(self) -> None:
        """Leaves the jobs that run to whoever comes next."""
        self.closed.set()
        with self._lock:
            mine, self._mine = self._mine, None
            if mine is not None:
                os.close(mine)

    def _start(self, job: Job) -> Job:
        place = self.store.place(job.id)
        running = job.model_copy(update={"state": "running", "started_at": int(time.time())})
        # Written first: a service that dies in between finds a job without a process, and never starts one twice.
        self.store.write(running)
        self.store.tell(job.id, "The job has begun.")
        lock = lock_of(place)
        assert lock is not None, "a queued job has no process"
        try:
            with (place / LOG).open("ab") as output:
                process = subprocess.Popen(
                    [*self._command, str(place)],
                    env=_environment(self._environment, job),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        except OSError as error:
            os.close(lock)
            return self._end(running, "failed", f"The job's process could not be started: {error.strerror}.")
        os.close(lock)  # the process has it now, and it is free when that ends
        self._processes[job.id] = process
        running = running.model_copy(update={"process_id": process.pid})
        self.store.write(running)
        log.info("%s runs as process %d", job.id, process.pid)
        return running

    def _has_ended(self, job: Job) -> bool:
        if self.store.is_alive(job.id):
            self._remind(job)
            return False
        process = self._processes.pop(job.id, None)
        status = process.wait() if process is not None else None  # its lock is let go a moment before it has a status
        self._sweep_up(job)
        outcome, cancelled = self.store.outcome(job.id), self.store.cancel_asked_at(job.id) is not None
        late = self.store.cancel_reason(job.id)
        if outcome is not None and outcome.result is not None:
            self._end(job.model_copy(update={"result": outcome.result}), "succeeded")
        elif cancelled:
            self._end(job, "failed" if late else "cancelled", late or None)
        elif outcome is not None:
            self._end(job, "failed", outcome.error)
        else:
            how = "" if status is None else f" with status {status}"
            self._end(
                job, "failed", f"The job's process ended{how} before it had a result: it was killed, or its machine stopped."
            )
        return True

    def _remind(self, job: Job) -> None:
        """Asks a job to end that is to be cancelled or has had its time, and ends it when it does not."""
        if self.store.cancel_asked_at(job.id) is None and time.time() - (job.started_at or 0) > self._max_seconds:
            self.store.ask_to_cancel(job.id, f"A job may run for {self._max_seconds:g} s, and this one did. Give it less to do.")
        asked = self.store.cancel_asked_at(job.id)
        if asked is None or job.process_id is None:
            return
        grace = COMMIT_GRACE_S if self.store.is_committing(job.id) else GRACE_S
        _signal(job.process_id, signal.SIGKILL if time.time() - asked > grace else signal.SIGTERM)

    def _sweep_up(self, job: Job) -> None:
        """What a process began and did not finish; what it started has ended with it."""
        outcome = self.store.outcome(job.id)
        half_done = () if outcome is not None and outcome.result is not None else (self._home / "studies" / job.id,)
        self.store.clear(job.id, *half_done)

    def _end(self, job: Job, state: State, error: str | None = None) -> Job:
        assert state in FINAL
        ended = job.model_copy(update={"state": state, "finished_at": int(time.time()), "error": error, "process_id": None})
        self.store.tell(job.id, f"The job has {'been ' if state == 'cancelled' else ''}{state}.{f' {error}' if error else ''}")
        self.store.write(ended)
        log.info("%s: %s", job.id, state)
        return ended


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _environment(settings: Mapping[str, str], job: Job) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **settings, "PYTHONPATH": path, "GRAFTLINE_ACTOR": job.actor}
