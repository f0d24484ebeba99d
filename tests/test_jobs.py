"""Jobs: their order, their ends, and what a restart finds. Each runs a few lines of Python in place of a sweep."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.record import Job
from service.jobs.runner import Jobs, TooManyJobs
from service.jobs.store import JobStore

# What a job's process does: argv[1] is its directory.
SUCCEEDS = "open(place + '/result.json', 'w').write('{\"result\": {\"release\": \"law@1\"}}')"
FAILS = "open(place + '/result.json', 'w').write('{\"error\": \"No trial kept every family.\"}')"
WAITS = "import subprocess; subprocess.Popen(['sleep', '60']); open(place + '/begun', 'w'); time.sleep(60)"
WAITS_FOR_A_FILE = f"""
while not os.path.exists(place + '/go'): time.sleep(0.01)
{SUCCEEDS}"""
COMMITS = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(place + '/committing', 'w')
while not os.path.exists(place + '/cancel'): time.sleep(0.01)
{SUCCEEDS}"""
IS_DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(place + '/begun', 'w'); time.sleep(60)"


def running(home: Path, script: str, at_once: int = 1, max_queued: int = 10, max_seconds: float = 60.0) -> Jobs:
    code = f"import os, signal, sys, time; place = sys.argv[1]\n{script}"
    command = (sys.executable, "-S", "-E", "-c", code)
    return Jobs(home, {}, {"fine_tuning": at_once, "promotion": 1}, max_queued, max_seconds, command)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[Jobs], Jobs]]:
    """Ends, after the test, what it left running."""
    kept: list[Jobs] = []

    def remember(jobs: Jobs) -> Jobs:
        kept.append(jobs)
        return jobs

    yield remember
    for jobs in kept:
        for kind in ("fine_tuning", "promotion"):
            for job in jobs.store.unfinished(kind):  # type: ignore[arg-type]
                jobs.cancel(job.id, wait_s=5)
        jobs.close()


def ended(jobs: Jobs, job: Job, within_s: float = 20.0) -> Job:
    ends = time.monotonic() + within_s
    while True:
        jobs.advance()
        found = jobs.store.find(job.id)
        assert found is not None
        if found.is_final:
            return found
        assert time.monotonic() < ends, f"{found.state} after {within_s} s"
        time.sleep(0.02)


def begun(jobs: Jobs, job: Job) -> None:
    while not (jobs.store.place(job.id) / "begun").exists():
        time.sleep(0.01)


def test_a_job_ends_with_the_result_that_its_process_left(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, SUCCEEDS))
    job = ended(jobs, jobs.submit("fine_tuning", {}, "ann"))
    assert (job.state, job.result, job.actor) == ("succeeded", {"release": "law@1"}, "ann")
    assert [event.message for event in jobs.store.events(job.id)] == [
        "The job is queued.",
        "The job has begun.",
        "The job has succeeded.",
    ]


def test_a_job_that_fails_says_why(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, FAILS))
    job = ended(jobs, jobs.submit("fine_tuning", {}, "ann"))
    assert (job.state, job.error) == ("failed", "No trial kept every family.")


def test_one_job_runs_and_the_rest_wait_in_their_order(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS_FOR_A_FILE))
    made = [jobs.submit("fine_tuning", {}, "ann") for _ in range(5)]
    assert [job.state for job in made] == ["running", *["queued"] * 4]
    assert len({job.created_at for job in made}) <= 2, "they are of one second, or of two"
    assert jobs.store.ids("fine_tuning") == [job.id for job in reversed(made)]
    for job in made:
        (jobs.store.place(job.id) / "go").touch()
    started = [ended(jobs, job) for job in made]
    assert [job.state for job in started] == ["succeeded"] * 5
    begins = [jobs.store.events(job.id)[1].at for job in started]
    assert begins == sorted(begins)


def test_a_promotion_does_not_wait_for_a_sweep(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS))
    assert [jobs.submit("fine_tuning", {}, "ann").state, jobs.submit("promotion", {}, "ann").state] == ["running", "running"]


def test_more_than_may_wait_are_refused(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS, max_queued=2))
    for _ in range(3):
        jobs.submit("fine_tuning", {}, "ann")
    with pytest.raises(TooManyJobs, match="At most 2 jobs wait"):
        jobs.submit("fine_tuning", {}, "ann")


def test_a_job_whose_process_was_killed_has_failed_with_the_reason(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS))
    job = jobs.submit("fine_tuning", {}, "ann")
    assert job.process_id is not None
    os.kill(job.process_id, signal.SIGKILL)
    failed = ended(jobs, job)
    assert failed.state == "failed" and "status -9" in str(failed.error)


def test_a_process_that_has_no_status_yet_when_its_lock_is_free_is_waited_for(
    tmp_path: Path, keep: Callable[[Jobs], Jobs]
) -> None:
    jobs = keep(running(tmp_path, "os.closerange(3, 256); open(place + '/begun', 'w'); time.sleep(0.5); sys.exit(3)"))
    job = jobs.submit("fine_tuning", {}, "ann")
    begun(jobs, job)
    assert "status 3" in str(ended(jobs, job).error)


def test_a_cancelled_job_ends_with_everything_it_started_and_leaves_nothing_half_done(
    tmp_path: Path, keep: Callable[[Jobs], Jobs]
) -> None:
    jobs = keep(running(tmp_path, WAITS))
    job = jobs.submit("fine_tuning", {}, "ann")
    begun(jobs, job)
    assert job.process_id is not None
    (tmp_path / "studies" / job.id).mkdir(parents=True)
    cancelled = jobs.cancel(job.id)
    assert cancelled is not None and cancelled.state == "cancelled"
    assert not (tmp_path / "studies" / job.id).exists()
    assert not group_is_alive(job.process_id)


def group_is_alive(group: int) -> bool:
    """A process that ended and waits to be reaped, as an orphan of a container may, is not alive."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def test_a_job_that_waits_is_cancelled_without_having_begun(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS))
    jobs.submit("fine_tuning", {}, "ann")
    waiting = jobs.submit("fine_tuning", {}, "ann")
    cancelled = jobs.cancel(waiting.id)
    assert cancelled is not None and (cancelled.state, cancelled.started_at) == ("cancelled", None)


def test_what_has_ended_is_not_cancelled(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, SUCCEEDS))
    job = ended(jobs, jobs.submit("fine_tuning", {}, "ann"))
    assert jobs.cancel(job.id) == job


def test_who_is_writing_to_the_registry_finishes_that_before_a_cancellation(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, COMMITS))
    job = jobs.submit("fine_tuning", {}, "ann")
    while not (jobs.store.place(job.id) / "committing").exists():
        time.sleep(0.01)
    finished = jobs.cancel(job.id)
    assert finished is not None and finished.state == "succeeded"


def test_a_job_that_does_not_listen_is_killed(
    tmp_path: Path, keep: Callable[[Jobs], Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.runner.GRACE_S", 0.3)
    jobs = keep(running(tmp_path, IS_DEAF))
    job = jobs.submit("fine_tuning", {}, "ann")
    begun(jobs, job)
    cancelled = jobs.cancel(job.id, wait_s=10)
    assert cancelled is not None and cancelled.state == "cancelled"


def test_a_job_that_takes_too_long_has_failed(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    jobs = keep(running(tmp_path, WAITS, max_seconds=0.2))
    failed = ended(jobs, jobs.submit("fine_tuning", {}, "ann"))
    assert failed.state == "failed" and "may run for 0.2 s" in str(failed.error)


def test_a_restarted_service_goes_on_with_the_job_that_still_runs(tmp_path: Path, keep: Callable[[Jobs], Jobs]) -> None:
    before = running(tmp_path, WAITS_FOR_A_FILE)
    job = before.submit("fine_tuning", {}, "ann")
    before.close()
    after = keep(running(tmp_path, WAITS_FOR_A_FILE))
    after.advance()
    found = after.store.find(job.id)
    assert found is not None and found.state == "running"
    (after.store.place(job.id) / "go").touch()
    assert ended(after, job).state == "succeeded"
    reap(before)


def reap(jobs: Jobs) -> None:
    """What init does for the children of a service that has ended."""
    for process in jobs._processes.values():
        process.wait()


def test_a_restarted_service_says_which_job_died_meanwhile_and_starts_the_next(
    tmp_path: Path, keep: Callable[[Jobs], Jobs]
) -> None:
    before = running(tmp_path, WAITS)
    died, waiting = (before.submit("fine_tuning", {}, "ann") for _ in range(2))
    before.close()
    assert died.process_id is not None
    os.killpg(died.process_id, signal.SIGKILL)
    reap(before)
    after = keep(running(tmp_path, SUCCEEDS))
    failed = ended(after, died)
    assert failed.state == "failed" and "was killed, or its machine stopped" in str(failed.error)
    assert ended(after, waiting).state == "succeeded"


def test_of_two_services_over_one_home_one_runs_the_jobs_and_both_show_and_cancel_them(
    tmp_path: Path, keep: Callable[[Jobs], Jobs]
) -> None:
    first, second = keep(running(tmp_path, WAITS)), running(tmp_path, WAITS)
    first.advance()
    job = second.submit("fine_tuning", {}, "ann")
    assert job.state == "queued"
    first.advance()
    seen = second.store.find(job.id)
    assert seen is not None and seen.state == "running"
    second.cancel(job.id, wait_s=0)
    assert ended(first, job).state == "cancelled"


@pytest.mark.parametrize("job_id", ["../../etc", "ftjob-../x", "ftjob-", "", "ftjob-0", "file-1"])
def test_an_id_that_was_never_given_away_finds_nothing(tmp_path: Path, job_id: str) -> None:
    assert JobStore(tmp_path).find(job_id) is None
