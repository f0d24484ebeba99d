"""The benchmark of promotions: from which moment a wait counts."""

from __future__ import annotations

import json
import time

import openai
from gated_names import NAME
from plain_server import answering

from benchmarks import promotion
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
