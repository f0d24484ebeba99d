"""Series are by what answered, exact, and gone some time after their release."""

from __future__ import annotations

from collections.abc import Callable

from idle_engine import IdleEngine

from engine.engine import BankStats, EngineStats
from service import meters
from service.lease import Served
from service.meters import KEPT_S, REQUESTS, UNKNOWN, Forgetting, exposition


def told(stats: EngineStats | None = None, *served: Served) -> str:
    return exposition(IdleEngine().stats if stats is None else lambda: stats, lambda: served)


def sample(line: str) -> float | None:
    for one in told().splitlines():
        if one.startswith(line + " "):
            return float(one.rpartition(" ")[2])
    return None


def forgetting(served: list[str]) -> tuple[Forgetting, Callable[[float], None]]:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    return Forgetting(lambda: served, lambda: now[0]), wait


def test_a_release_that_is_served_no_more_loses_its_series_after_some_scrapes() -> None:
    series = 'graftline_requests_total{model="gone@1",outcome="completed"}'
    REQUESTS.labels("gone@1", "completed").inc()
    meters.LATENCY.labels("gone@1").observe(1)
    served = ["gone@1"]
    looking, wait = forgetting(served)
    looking.look()
    wait(10 * KEPT_S)
    looking.look()
    assert sample(series) == 1
    served.clear()
    looking.look()
    wait(KEPT_S - 1)
    looking.look()
    assert sample(series) == 1
    wait(1)
    looking.look()
    assert sample(series) is None and "gone@1" not in told()


def test_a_release_that_comes_back_in_time_keeps_its_counts() -> None:
    REQUESTS.labels("back@1", "completed").inc(3)
    served: list[str] = []
    looking, wait = forgetting(served)
    looking.look()
    wait(KEPT_S - 1)
    served.append("back@1")
    looking.look()
    served.clear()
    wait(10)
    looking.look()
    assert sample('graftline_requests_total{model="back@1",outcome="completed"}') == 3


def test_requests_that_named_nothing_are_one_series_for_ever() -> None:
    meters.count_refusal()
    looking, wait = forgetting([])
    looking.look()
    wait(10 * KEPT_S)
    looking.look()
    assert sample(f'graftline_requests_total{{model="{UNKNOWN}",outcome="refused"}}')


def test_what_the_engine_counts_is_read_when_asked() -> None:
    bank = BankStats(resident=2, loaded=3, resident_bytes=13)
    stats = EngineStats(running=17, waiting=19, cached_tokens=23, steps=29, decode_rows=31, mixes={1: 37, 8: 41}, bank=bank)
    lines = [line.removeprefix("graftline_engine_") for line in told(stats).splitlines()]
    for line in (
        "running_rows 17.0",
        "waiting_rows 19.0",
        "cached_tokens_total 23.0",
        "steps_total 29.0",
        "decoded_rows_total 31.0",
        'mixed_steps_total{profiles="1"} 37.0',
        'mixed_steps_total{profiles="8"} 41.0',
        "resident_adapters 2.0",
        "loaded_adapters 3.0",
        "bank_bytes 13.0",
    ):
        assert line in lines


def test_the_bank_and_the_batch_are_told_by_what_answers_and_no_longer_than_it_is_loaded() -> None:
    bank = BankStats(
        is_resident={"a@v1#f": True, "a@v1#f.1": False, "b@v2#e": False, "gone@v1#d": True},
        hits={"a@v1#f": 5, "a@v1#f.1": 2, "gone@v1#d": 3},
        loads={"a@v1#f": 7, "b@v2#e": 1},
        evictions={"b@v2#e": 11},
    )
    stats = EngineStats(generated_tokens={"": 13, "a@v1#f": 17, "gone@v1#d": 19}, bank=bank)
    a, again, b = Served("a@1", "a@v1#f", ""), Served("a@1", "a@v1#f.1", ""), Served("b@2", "b@v2#e", "")
    found = told(stats, Served("the-backbone", None, ""), a, again, b)
    lines = [line.removeprefix("graftline_engine_") for line in found.splitlines() if line.startswith("graftline_engine_")]
    assert [line for line in lines if "@" in line or "backbone" in line] == [
        'resident{model="a@1"} 1.0',
        'resident{model="b@2"} 0.0',
        'written_tokens_total{model="the-backbone"} 13.0',
        'written_tokens_total{model="a@1"} 17.0',
        'bank_hits_total{model="a@1"} 7.0',
        'bank_loads_total{model="a@1"} 7.0',
        'bank_loads_total{model="b@2"} 1.0',
        'bank_evictions_total{model="b@2"} 11.0',
    ]
