"""Two servers, each a process of its own, and a canary that fails: one rollback, and the champion for everybody."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai
import pytest
from running_service import client_of, serving, write
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.canary import CanaryLedger
from registry.canary_chain import Bounds
from registry.release import publish


@pytest.mark.slow
def test_a_canary_that_fails_is_rolled_back_once_by_two_servers(
    tmp_path: Path, session_backbone: Backbone, backbone_directory: Path
) -> None:
    tracking = store_at(tmp_path / "home")
    for version, size in ((1, 0.3), (2, 1e30)):
        write_release(tmp_path / str(version), session_backbone, random_lora(session_backbone, version, size=size))
        publish(tracking, "law", tmp_path / str(version))
    promote(tracking, "law", 1)
    ledger = CanaryLedger(tracking, "law")
    with serving(tracking, backbone_directory) as first, serving(tracking, backbone_directory) as second:
        clients = [client_of(server) for server in (first, second)]
        expected = write(clients[0], "law@1", max_tokens=4)
        ledger.start(2, 0.5, None, override=True, reason="it fails", bounds=Bounds(min_requests=8))
        refused, ends = 0, time.monotonic() + 120
        while ledger.under_way() is not None:
            assert time.monotonic() < ends, "not rolled back within 120 s"
            for client in clients:
                try:
                    assert write(client, "law", max_tokens=4) == expected
                except openai.InternalServerError:
                    refused += 1
        assert refused >= 8
        time.sleep(2)  # the other server has looked at the ledger by then
        for server, client in zip((first, second), clients, strict=True):
            assert {write(client, "law", max_tokens=4) for _ in range(12)} == {expected}
            shown = httpx.get(f"{server.openai_url}/releases/law").json()
            assert shown["champion"]["id"] == "law@1"
            assert (shown["canary"]["state"], shown["canary"]["ended_by"]) == ("ended", "rollback")
    assert [entry.kind for _, entry in ledger.history().valid] == ["start", "rollback"]
    log = (tracking.cache.parent / "service.log").read_text()
    assert "ALERT" in log and "law@2" in log
    audited = (tracking.cache.parent / "audit.jsonl").read_text()
    assert audited.count("canary.rollback") == 1
