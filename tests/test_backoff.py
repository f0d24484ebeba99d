"""When a worker that ended is started again."""

from __future__ import annotations

from tuning.executors.backoff import Backoff
from tuning.executors.executor import START_AGAIN

DEATH, SOON, LATE = -9, 1.0, 3600.0


def test_waits_double_up_to_a_minute() -> None:
    backoff = Backoff(20, first_s=2.0)
    assert [backoff.wait_s(DEATH, SOON) for _ in range(8)] == [2, 4, 8, 16, 32, 60, 60, 60]


def test_a_worker_is_given_up_at_one_death_more_than_allowed() -> None:
    backoff = Backoff(2, first_s=1.0)
    assert [backoff.wait_s(DEATH, SOON) for _ in range(3)] == [1, 2, None]


def test_one_that_ran_for_long_begins_anew() -> None:
    backoff = Backoff(2, first_s=1.0)
    assert [backoff.wait_s(DEATH, ran_s) for ran_s in (SOON, SOON, LATE, SOON, SOON)] == [1, 2, 1, 2, None]


def test_preemptions_never_count_but_wait_too() -> None:
    backoff = Backoff(1, first_s=1.0)
    codes = [DEATH, *[START_AGAIN] * 5, DEATH]
    assert [backoff.wait_s(code, SOON) for code in codes] == [1, 2, 4, 8, 16, 32, 60]
