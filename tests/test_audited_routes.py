"""Every endpoint that changes the server leaves a line in the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from live_service import Live, live, small
from test_scopes import ROUTES

from registry.tracking import Tracking
from service.audit import read_audit
from service.control import CONTROLLED
from service.scopes import COMPLETE, TABLE

CHANGING = {
    (method, rule.path)
    for rule in TABLE
    for method in rule.methods - {"GET", "HEAD"}
    if rule.scope not in (None, COMPLETE)  # completions change nothing; a webhook has a signature for a key, and is a hint
}
# By (method, path): what is sent, whole enough that the endpoint itself is asked. What it names is not there.
SENT: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/load_lora_adapter"): {"json": {"lora_name": "law", "lora_path": "law@1"}},
    ("POST", "/v1/unload_lora_adapter"): {"json": {"lora_name": "law"}},
    ("POST", "/v1/files"): {"data": {"purpose": "none"}, "files": {"file": ("rows.jsonl", b"{}")}},
    ("DELETE", "/v1/files/{file_id}"): {},
    ("POST", "/v1/fine_tuning/jobs"): {"json": {"model": "nobody", "training_file": "file-a"}},
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): {},
    ("POST", "/v1/sweeps"): {"json": {"recipe": "nowhere"}},
    ("POST", "/v1/releases/{name}/promote"): {"json": {"version": 1}},
    ("POST", "/v1/releases/{name}/approve"): {"json": {"version": 1}},
    ("POST", "/v1/releases/{name}/rollback"): {"json": {"reason": "it lost its reasoning"}},
    ("POST", "/v1/releases/promotions/{job_id}/cancel"): {},
}
# It has the service look at what the ledger says anyway.
CHANGES_NOTHING = {("POST", "/v1/ledger/hint")}


def test_every_endpoint_that_changes_the_server_leaves_a_line(tracking: Tracking, backbone_directory: Path) -> None:
    home = tracking.cache.parent
    with live(small(backbone_directory, home)) as server:
        asked = {place: sent(server, *place) for place in sorted(CHANGING - CHANGES_NOTHING)}
    entries, _ = read_audit(home)
    lines = {entry.request_id: entry for entry in entries}
    assert not [place for place, request in asked.items() if request not in lines], "these leave no line in the audit log"
    assert {lines[request].outcome for request in asked.values()} == {"refused"}
    assert len(entries) == len(asked)


def test_what_is_sent_is_sent_to_endpoints_that_are_there() -> None:
    assert SENT.keys() | CHANGES_NOTHING == CHANGING, "say in SENT what to send to a new endpoint, so that its line is looked for"


def test_every_endpoint_that_changes_the_server_asks_for_control() -> None:
    asking = [route for route in ROUTES if CONTROLLED in getattr(route, "dependencies", ())]
    assert {(method, route.path) for route in asking for method in (route.methods or set()) - {"GET", "HEAD"}} == CHANGING


def sent(server: Live, method: str, path: str) -> str:
    """The request's id."""
    url = path.format(file_id="file-a", job_id="ftjob-a", name="law")
    reply = httpx.request(method, f"{server.url}{url}", **SENT.get((method, path), {}))
    return reply.headers["x-request-id"]
