"""Who is let in, over real sockets: with keys, whoever has one with the endpoint's scope; without, this machine alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import httpx
import pytest
from fastapi import FastAPI
from live_service import Live, live, small
from starlette.types import ASGIApp
from stores import store_at

from service.access import Access
from service.admission import Admission, Bounds
from service.caller import Quota, Scope
from service.front import Front
from service.keys import KeyStore
from service.quota import Quotas
from service.scopes import TABLE, Rule


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("keyed")
    store_at(home)
    return home


@pytest.fixture(scope="module")
def secrets(home: Path) -> dict[Scope, str]:
    """A key for each scope."""
    return {scope: KeyStore(home).create(scope, (scope,), Quota()).secret for scope in Scope}


@pytest.fixture(scope="module")
def keyed(home: Path, secrets: dict[Scope, str], backbone_directory: Path) -> Iterator[Live]:
    with live(small(backbone_directory, home)) as server:
        yield server


def ask(server: Live, secret: str | None, method: str = "GET", path: str = "/v1/models") -> httpx.Response:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    # Plain HTTP: without this each call would read all certificates of the machine, which takes longer than the answer.
    return httpx.request(method, server.url + path, headers=headers, verify=False)


def test_probes_are_open(keyed: Live) -> None:
    assert [ask(keyed, None, path=path).status_code for path in ("/livez", "/readyz")] == [200, 200]


@pytest.mark.parametrize("rule", [rule for rule in TABLE if rule.scope is not None], ids=lambda rule: rule.path)
def test_without_a_key_every_endpoint_is_closed(keyed: Live, rule: Rule) -> None:
    for method in rule.methods:
        answer = ask(keyed, None, method, rule.path.replace("{", "").replace("}", ""))
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
        assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path", ["/invocations", "/adapters", "/tokenize", "/openapi.json", "/docs", "//v1/models", "/V1/models"]
)
def test_what_nobody_offers_says_nothing_to_strangers(keyed: Live, path: str) -> None:
    # vLLM guards /v1 alone: there, siblings such as /adapters answer without a key.
    assert ask(keyed, None, path=path).status_code == 401


def test_a_key_with_the_scope_is_let_in(keyed: Live, secrets: dict[Scope, str]) -> None:
    assert ask(keyed, secrets[Scope.COMPLETE]).status_code == 200
    assert ask(keyed, secrets[Scope.ADMIN]).status_code == 200


def test_a_key_without_the_scope_is_told_which(keyed: Live, secrets: dict[Scope, str]) -> None:
    answer = ask(keyed, secrets[Scope.COMPLETE], path="/metrics")
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "missing_scope"
    assert "'admin'" in answer.json()["error"]["message"] and 'scope="admin"' in answer.headers["www-authenticate"]
    assert ask(keyed, secrets[Scope.ADMIN], path="/metrics").status_code == 200


def test_only_an_admins_key_goes_before_others(keyed: Live, secrets: dict[Scope, str], base: str) -> None:
    def asked(scope: Scope, priority: int | None) -> httpx.Response:
        body = {"model": base, "prompt": "Add 5.", "max_tokens": 1, "priority": priority}
        headers = {"authorization": f"Bearer {secrets[scope]}"}
        return httpx.post(f"{keyed.openai_url}/completions", json=body, headers=headers, verify=False)

    refused = asked(Scope.COMPLETE, -1)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (403, "missing_scope", "priority")
    assert "needs a key with the scope 'admin', but got -1. Give 0 or more" in error["message"]
    assert [asked(Scope.COMPLETE, one).status_code for one in (7, 0, None)] == [200] * 3
    assert asked(Scope.ADMIN, -1).status_code == 200


def test_a_refusal_carries_the_requests_id(keyed: Live) -> None:
    answer = httpx.get(f"{keyed.openai_url}/models", headers={"x-request-id": "r-7"})
    assert answer.status_code == 401 and answer.headers["x-request-id"] == "r-7"


@pytest.mark.parametrize("header", ["Bearer", "Basic abc", "Bearer none", "Bearer graftline-00000000-" + "A" * 43])
def test_a_wrong_header_opens_nothing(keyed: Live, header: str) -> None:
    assert httpx.get(f"{keyed.openai_url}/models", headers={"authorization": header}).status_code == 401


def test_a_revoked_key_is_refused_within_a_second(keyed: Live, home: Path) -> None:
    made = KeyStore(home).create("passing", (Scope.COMPLETE,), Quota())
    assert ask(keyed, made.secret).status_code == 200
    KeyStore(home).revoke("passing")
    revoked = time.monotonic()
    assert ask(keyed, made.secret).status_code == 401
    assert time.monotonic() - revoked < 1


def test_taking_the_file_away_does_not_open_the_server(keyed: Live, home: Path, secrets: dict[Scope, str]) -> None:
    file = KeyStore(home).file
    text = file.read_bytes()
    file.unlink()
    try:
        assert ask(keyed, None).status_code == 401
    finally:
        file.write_bytes(text)
        file.chmod(0o600)
    assert ask(keyed, secrets[Scope.COMPLETE]).status_code == 200


async def told(access: Access, server: str, *, without: str | None = None, times: int = 1, **headers: str) -> int:
    """The status for somebody who dialled the address `server` and sent these headers to so many fronts behind each other."""
    application = FastAPI()
    parts = SimpleNamespace(
        admission=Admission(Bounds(1, 1, 1), Quotas()), settings=SimpleNamespace(max_body_bytes=1, body_timeout_s=1.0)
    )
    for name, value in (("access", access), ("parts", parts)):
        if name != without:
            setattr(application.state, name, value)
    statuses: list[int] = []

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        statuses.append(message.get("status", 0))

    async def endpoint(scope: object, receive: object, send: object) -> None:
        statuses.append(200)

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": named, "server": (server, 3000)}
    app: ASGIApp = endpoint
    for _ in range(times):
        app = Front(app, application)
    await app(scope, receive, send)
    return statuses[0]


def test_a_server_without_keys_answers_this_machine_alone(tmp_path: Path) -> None:
    access, opened = Access(KeyStore(tmp_path)), Access(KeyStore(tmp_path), is_open=True)
    local = {"host": "127.0.0.1:3000"}
    cases: list[tuple[str, dict[str, str], int]] = [
        ("127.0.0.1", local, 200),
        ("127.0.0.1", {"host": "localhost"}, 200),
        ("::1", {"host": "[::1]:3000"}, 200),
        ("10.0.0.7", {"host": "10.0.0.7:3000"}, 403),
        ("10.0.0.7", local, 403),
        ("127.0.0.1", {"host": "evil.example:3000"}, 403),  # a name that was made to point here
        ("127.0.0.1", {**local, "origin": "https://evil.example"}, 403),
        ("127.0.0.1", {**local, "origin": "null"}, 403),
        ("127.0.0.1", {**local, "origin": "http://localhost:8080"}, 200),
        ("127.0.0.1", {}, 403),
        ("127.0.0.1", {"host": "[::1"}, 403),  # no host at all, and no failure of the server
        ("127.0.0.1", {**local, "origin": "http://[x"}, 403),
    ]
    for server, headers, status in cases:
        assert asyncio.run(told(access, server, **headers)) == status, (server, headers)
        assert asyncio.run(told(opened, server, **headers)) == 200


def test_keys_that_cannot_be_read_let_nobody_in(tmp_path: Path) -> None:
    KeyStore(tmp_path).create("bot", (Scope.COMPLETE,), Quota())
    KeyStore(tmp_path).file.write_text("{")
    for access in (Access(KeyStore(tmp_path)), Access(KeyStore(tmp_path), is_open=True)):
        assert asyncio.run(told(access, "127.0.0.1", host="127.0.0.1")) == 503


def test_a_secret_counts_as_a_bearers_alone(tmp_path: Path) -> None:
    secret = KeyStore(tmp_path).create("bot", (Scope.COMPLETE,), Quota()).secret
    access = Access(KeyStore(tmp_path))
    statuses = [asyncio.run(told(access, "::1", authorization=f"{kind} {secret}")) for kind in ("Bearer", "bearer", "Basic")]
    assert statuses == [200, 200, 401]


@pytest.mark.parametrize("missing", ["access", "parts"])
def test_before_it_has_started_the_server_says_so(tmp_path: Path, missing: str) -> None:
    assert asyncio.run(told(Access(KeyStore(tmp_path)), "127.0.0.1", without=missing, host="127.0.0.1")) == 503


def test_a_request_passes_the_front_once_however_often_it_stands_there(tmp_path: Path) -> None:
    caller = KeyStore(tmp_path).create("bot", (Scope.COMPLETE,), Quota(requests_per_min=1))
    access = Access(KeyStore(tmp_path))
    assert asyncio.run(told(access, "::1", times=2, authorization=f"Bearer {caller.secret}")) == 200


def test_a_websocket_is_closed_before_anything_sees_it() -> None:
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def never(*_: object) -> NoReturn:
        raise AssertionError("it was let in")

    asyncio.run(Front(never, FastAPI())({"type": "websocket", "path": "/v1/models"}, never, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_metrics_are_open_where_a_setting_says_so(tmp_path: Path) -> None:
    KeyStore(tmp_path).create("bot", (Scope.COMPLETE,), Quota())
    metrics = next(rule for rule in TABLE if rule.path == "/metrics")
    models = next(rule for rule in TABLE if rule.path == "/v1/models")
    assert not Access(KeyStore(tmp_path)).leaves_open(metrics)
    opened = Access(KeyStore(tmp_path), has_open_metrics=True)
    assert opened.leaves_open(metrics) and not opened.leaves_open(models)
