"""The application under any server: what other tests of endpoints rest on."""

from __future__ import annotations

from pathlib import Path

import httpx
from live_service import live, small
from stores import store_at


def test_the_application_answers_without_bentoml(tmp_path: Path, backbone_directory: Path) -> None:
    store_at(tmp_path)
    with live(small(backbone_directory, tmp_path)) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        listed = httpx.get(f"{server.openai_url}/models").json()
        body = {"model": backbone_directory.name, "prompt": "Add 5.", "max_tokens": 3}
        reply = httpx.post(f"{server.openai_url}/completions", json=body).json()
        unknown = httpx.get(f"{server.openai_url}/never")
    assert [card["id"] for card in listed["data"]] == [backbone_directory.name]
    assert reply["usage"]["completion_tokens"] == 3
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "unknown_url"


def test_usage_says_what_of_a_prompt_was_read_before_and_a_salt_keeps_tenants_apart(
    tmp_path: Path, backbone_directory: Path
) -> None:
    store_at(tmp_path)
    prompt = list(range(9, 9 + 50))
    with live(small(backbone_directory, tmp_path)) as server:

        def cached(**more: object) -> int:
            body = {"model": backbone_directory.name, "prompt": prompt, "max_tokens": 1, **more}
            usage = httpx.post(f"{server.openai_url}/completions", json=body).json()["usage"]
            assert usage["prompt_tokens"] == 50
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert [cached(), cached(), cached(cache_salt="mine"), cached(cache_salt="mine")] == [0, 48, 0, 48]
        metrics = httpx.get(f"{server.url}/metrics").text
    assert "graftline_engine_cached_tokens_total 96.0" in metrics
    assert f'graftline_queue_seconds_count{{model="{backbone_directory.name}"}}' in metrics
