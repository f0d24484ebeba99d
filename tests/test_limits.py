"""Quotas, the waiting line's bound and deadlines as a client meets them, over real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_service import Live, live, small
from stores import store_at

from service import meters
from service.caller import Quota, Scope
from service.keys import KeyStore


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("limited")
    store_at(home)
    return home


@pytest.fixture(scope="module")
def server(home: Path, backbone_directory: Path) -> Iterator[Live]:
    KeyStore(home).create("first", (Scope.COMPLETE,), Quota())
    with live(small(backbone_directory, home, max_queued_rows=4)) as server:
        yield server


@pytest.fixture
def client_with(server: Live, home: Path, request: pytest.FixtureRequest) -> openai.OpenAI:
    """Of a key of its own, with the quota that the test is marked with."""
    name = f"k{abs(hash(request.node.name))}"
    secret = KeyStore(home).create(name, (Scope.COMPLETE,), Quota.model_validate(request.param)).secret
    return openai.OpenAI(base_url=server.openai_url, api_key=secret, max_retries=0, timeout=60)


def complete(client: openai.OpenAI, base: str, **fields: object) -> openai.types.Completion:
    body: dict[str, object] = {"model": base, "prompt": "Add 5.", "max_tokens": 4, **fields}
    made: openai.types.Completion = client.completions.create(**body)  # type: ignore[call-overload]
    return made


@pytest.mark.parametrize("client_with", [{"requests_per_min": 2}], indirect=True)
def test_the_client_of_openai_sees_a_rate_limit_with_its_wait(client_with: openai.OpenAI, base: str) -> None:
    complete(client_with, base)
    complete(client_with, base)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(client_with, base)
    headers = caught.value.response.headers
    assert 20 < int(headers["retry-after"]) <= 30 and headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded" and headers["x-request-id"]


@pytest.mark.parametrize("client_with", [{"tokens_per_min": 2000}], indirect=True)
def test_a_reply_tells_what_is_left_and_unused_tokens_come_back(client_with: openai.OpenAI, base: str) -> None:
    # Without max_tokens a chat may fill the context: that is reserved, and only what was written is kept.
    asked = client_with.chat.completions.with_raw_response.create(
        model=base, messages=[{"role": "user", "content": "?"}], max_tokens=400
    )
    assert int(asked.headers["x-ratelimit-limit-tokens"]) == 2000
    used = asked.parse().usage
    assert used is not None
    later = client_with.completions.with_raw_response.create(model=base, prompt="Add 5.", max_tokens=1)
    assert int(later.headers["x-ratelimit-remaining-tokens"]) >= 2000 - used.total_tokens - 20


@pytest.mark.parametrize("client_with", [{"tokens_per_min": 50}], indirect=True)
def test_more_tokens_than_a_minute_has_are_refused_for_good(client_with: openai.OpenAI, base: str) -> None:
    with pytest.raises(openai.RateLimitError, match="Ask for fewer") as caught:
        complete(client_with, base, max_tokens=100)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("client_with", [{}], indirect=True)
def test_a_full_line_answers_at_once_and_before_the_body(server: Live, client_with: openai.OpenAI, base: str) -> None:
    admission = server.parts.admission
    admission.seated += 1000  # as if so many rows ran
    admission.queued.rows += 100
    try:
        complete(client_with, base)  # the connection is open: what follows is timed
    except openai.RateLimitError:
        pass
    try:
        began = time.perf_counter()
        with pytest.raises(openai.RateLimitError) as caught:
            complete(client_with, base)
        assert time.perf_counter() - began < 0.5  # far below it on an idle machine
    finally:
        admission.seated -= 1000
        admission.queued.rows -= 100
    assert caught.value.code == "server_overloaded" and int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("client_with", [{}], indirect=True)
@pytest.mark.parametrize("where", ["field", "header"])
def test_a_request_that_asks_for_less_time_ends_by_name(client_with: openai.OpenAI, base: str, where: str) -> None:
    short = {"extra_body": {"timeout": 0.001}} if where == "field" else {"extra_headers": {"x-request-timeout": "0.001"}}
    with pytest.raises(openai.InternalServerError, match="may take 0.001 s") as caught:
        complete(client_with, base, max_tokens=300, **short)
    assert caught.value.status_code == 504 and caught.value.code == "timeout"
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("client_with", [{}], indirect=True)
def test_a_timeout_that_is_no_time_is_refused(client_with: openai.OpenAI, base: str) -> None:
    for short in ({"extra_headers": {"x-request-timeout": "soon"}}, {"extra_body": {"timeout": -1}}):
        with pytest.raises(openai.BadRequestError, match="timeout"):
            complete(client_with, base, **short)


@pytest.mark.parametrize("client_with", [{}], indirect=True)
def test_what_is_turned_away_is_counted_by_its_code(server: Live, client_with: openai.OpenAI) -> None:
    def count() -> float:
        return meters.TURNED_AWAY.labels("invalid_api_key")._value.get()  # type: ignore[no-any-return]

    before = count()
    with pytest.raises(openai.AuthenticationError):
        client_with.with_options(api_key="none").models.list()
    assert count() == before + 1


@pytest.mark.parametrize("client_with", [{}], indirect=True)
def test_nothing_is_left_behind(server: Live, client_with: openai.OpenAI, base: str) -> None:
    complete(client_with, base, prompt=["Add 5."] * 3)
    with pytest.raises(openai.BadRequestError):
        complete(client_with, base, prompt="")
    with httpx.stream(
        "POST",
        f"{server.openai_url}/completions",
        json={"model": base, "prompt": "Add 5.", "max_tokens": 300, "stream": True},
        headers={"authorization": f"Bearer {client_with.api_key}"},
    ) as stream:
        next(stream.iter_lines())
    ends = time.monotonic() + 10
    admission = server.parts.admission
    while admission.seated or admission.queued.rows or admission.queued.tokens:
        assert time.monotonic() < ends
        time.sleep(0.02)
