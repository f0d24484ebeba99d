"""The benchmarks of promotions and canaries: from which moment a wait counts, and which run a table tells of."""

from __future__ import annotations

import json
import sys
import time

import openai
import pytest
from gated_names import NAME
from plain_server import answering

from benchmarks import canary, promotion
from registry.ledger import Ledger
from registry.tracking import Tracking


class Slow(Ledger):
    """Its `promote` returns long after the entry is written."""

    def point_alias(self) -> None:
        time.sleep(0.3)


def test_a_wait_counts_from_the_ledgers_entry_and_not_from_the_return_of_promote(tracking: Tracking) -> None:
    choice = {"index": 0, "text": "a", "finish_reason": "length"}
    chunk = {"id": "c", "object": "text_completion", "created": 0, "model": f"{NAME}@1", "choices": [choice]}
    with answering(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        began = time.time()
        wait = promotion.promoted(client, Slow(tracking, NAME), 1)
    assert 0.3 <= wait <= time.time() - began


@pytest.mark.parametrize(
    ("given", "kind"), [((), "default run"), (("--full",), "full run"), (("--runs", "1"), "sizes of its own")]
)
def test_the_table_of_canaries_tells_the_kind_of_its_run(
    given: tuple[str, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, titles = list[int](), list[str]()

    def row(name: str, traffic: canary.Traffic, count: int, most: int) -> list[str]:
        runs.append(count)
        return [name]

    monkeypatch.setattr(canary, "row", row)
    monkeypatch.setattr(canary, "rolled_back_after", lambda *asked: None)
    monkeypatch.setattr(canary, "write_section", lambda name, title, body: titles.append(title))
    monkeypatch.setattr(sys, "argv", ["canary", "--results", *given])
    canary.main()
    assert titles == [f"Rollback of canaries ({kind})"]
    assert set(runs) == {{"default run": 100, "full run": 400}.get(kind, 1)}


@pytest.mark.parametrize(("given", "count", "kind"), [((), 20, "default"), (("--full",), 100, "full")])
def test_the_table_of_promotions_tells_the_kind_of_its_run(
    given: tuple[str, ...], count: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, bodies = list[str](), list[str]()

    def write(name: str, title: str, body: str) -> None:
        titles.append(title)
        bodies.append(body)

    monkeypatch.setattr(promotion, "measure", lambda folder, backbone, number: [1.0] * number)
    monkeypatch.setattr(promotion, "write_section", write)
    monkeypatch.setattr(sys, "argv", ["promotion", *given])
    promotion.main()
    assert titles == [f"How soon a promotion is served ({kind} run)"]
    assert f"{count} of {count}" in bodies[0]
