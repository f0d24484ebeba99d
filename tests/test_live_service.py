"""The application under any server: what other tests of endpoints rest on."""

from __future__ import annotations

from pathlib import Path

import httpx
from live_service import live, small

from registry.tracking import Tracking


def test_the_application_answers_without_bentoml(tmp_path: Path, backbone_directory: Path) -> None:
    Tracking.at(tmp_path).create()
    with live(small(backbone_directory, tmp_path)) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        listed = httpx.get(f"{server.openai_url}/models").json()
        body = {"model": backbone_directory.name, "prompt": "Add 5.", "max_tokens": 3}
        reply = httpx.post(f"{server.openai_url}/completions", json=body).json()
        unknown = httpx.get(f"{server.openai_url}/never")
    assert [card["id"] for card in listed["data"]] == [backbone_directory.name]
    assert reply["usage"]["completion_tokens"] == 3
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "unknown_url"
