"""A canary's traffic over real sockets: who gets it, who never does, what is counted, and how it is taken away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_service import Live, live, small
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.canary import CanaryLedger
from registry.canary_chain import Bounds
from registry.release import publish
from registry.tracking import Tracking

PROMPT = "Start with 12. Add 5."
WILD = 3  # a version whose weights overflow: every request on it fails


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Tracking:
    """law 1, 2 and 3, of which 1 is champion and 3 is wild."""
    folder = tmp_path_factory.mktemp("canary")
    tracking = store_at(folder / "home")
    for version, size in ((1, 0.3), (2, 0.3), (WILD, 1e30)):
        write_release(folder / str(version), session_backbone, random_lora(session_backbone, version, size=size))
        publish(tracking, "law", folder / str(version))
    promote(tracking, "law", 1)
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking, backbone_directory: Path) -> Iterator[Live]:
    with live(small(backbone_directory, tracking.cache.parent)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def canaries(tracking: Tracking) -> Iterator[CanaryLedger]:
    """What a test starts ends with it."""
    ledger = CanaryLedger(tracking, "law")
    yield ledger
    if ledger.under_way() is not None:
        ledger.end("stop", "the test is over")


def start(
    canaries: CanaryLedger, server: Live, version: int, share: float, *, shadow: bool = False, bounds: Bounds | None = None
) -> None:
    bounds = bounds or Bounds()
    canaries.start(
        version, share, None, shadow=shadow, bounds=bounds, override=True, reason="a test of what comes after the gate"
    )
    server.parts.models.refresh()


def told(server: Live) -> dict[str, dict[str, object]]:
    answer: dict[str, dict[str, object]] = httpx.get(f"{server.openai_url}/releases/law").json()
    return answer


def answered(client: openai.OpenAI, model: str, user: str | None = None, **fields: object) -> str:
    call: Callable[..., openai.types.Completion] = client.completions.create
    return call(model=model, prompt=PROMPT, max_tokens=2, **({} if user is None else {"user": user}), **fields).model


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    ends = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends, f"not so within {within_s} s"
        time.sleep(0.05)


def test_a_user_stays_on_one_side_and_is_kept_as_the_share_grows(
    client: openai.OpenAI, server: Live, canaries: CanaryLedger
) -> None:
    users = [f"user {number}" for number in range(24)]
    sides: dict[float, set[str]] = {}
    start(canaries, server, 2, 0.25)
    for share in (0.25, 0.6):
        if share != 0.25:
            canaries.set_share(share)
            server.parts.models.refresh()
        sides[share] = {user for user in users if answered(client, "law", user) == "law@2"}
        assert sides[share] == {user for user in users if answered(client, "law", user) == "law@2"}
    assert set() < sides[0.25] < sides[0.6] < set(users)


def test_a_named_version_is_never_moved(client: openai.OpenAI, server: Live, canaries: CanaryLedger) -> None:
    start(canaries, server, 2, 0.95)
    assert {answered(client, "law") for _ in range(12)} >= {"law@2"}
    for model, answers in (("law@1", "law@1"), ("law@2", "law@2"), ("law@champion", "law@1")):
        assert {answered(client, model) for _ in range(6)} == {answers}


def test_all_prompts_and_chunks_of_a_request_are_of_one_release(
    client: openai.OpenAI, server: Live, canaries: CanaryLedger
) -> None:
    start(canaries, server, 2, 0.5)
    alone = {
        model: [choice.text for choice in client.completions.create(model=model, prompt=[PROMPT, "Answer: 14"]).choices]
        for model in ("law@1", "law@2")
    }
    assert alone["law@1"] != alone["law@2"]
    seen = set()
    for _ in range(12):
        texts = ["", ""]
        raw = client.completions.with_raw_response.create(model="law", prompt=[PROMPT, "Answer: 14"], stream=True)
        chunks = list(raw.parse())
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        [model] = {chunk.model for chunk in chunks}
        assert texts == alone[model] and raw.headers["x-graftline-model"] == model
        seen.add(model)
    assert seen == {"law@1", "law@2"}


def test_both_sides_are_counted_and_a_client_can_ask(client: openai.OpenAI, server: Live, canaries: CanaryLedger) -> None:
    start(canaries, server, 2, 0.5)
    models = [answered(client, "law") for _ in range(20)]
    answered(client, "law@2")
    shown = told(server)
    canary = shown["canary"]
    assert (canary["id"], canary["state"], canary["share"], canary["shadow"]) == ("law@2", "serving", 0.5, False)
    seen = canary["seen"]
    assert isinstance(seen, dict)
    # A version that was asked for by number was not drawn, and is not compared.
    assert seen["canary"]["requests"] == models.count("law@2") and seen["champion"]["requests"] == models.count("law@1")
    assert seen["canary"]["failed"] == 0 and seen["canary"]["first_token_s"] > 0 and seen["canary"]["token_s"] > 0
    assert shown["champion"]["id"] == "law@1"


def test_a_name_that_nobody_registered_has_no_releases(server: Live) -> None:
    for name in ("astrology", "law@1"):
        reply = httpx.get(f"{server.openai_url}/releases/{name}")
        assert reply.status_code == 404 and reply.json()["error"]["code"] == "model_not_found"


def test_a_broken_canary_is_rolled_back_once_and_its_clients_get_the_champion_again(
    client: openai.OpenAI, server: Live, canaries: CanaryLedger
) -> None:
    start(canaries, server, WILD, 0.5, bounds=Bounds(min_requests=8))
    failures = sent = 0
    while canaries.under_way() is not None and sent < 150:
        sent += 1
        try:
            assert answered(client, "law") == "law@1"
        except openai.InternalServerError:
            failures += 1
    assert 8 <= failures <= 75
    entry = canaries.history().valid[-1][1]
    assert (entry.kind, entry.adapter_version, entry.actor) == ("rollback", WILD, "the service")
    assert "error rate 100.0% against 0.0%" in entry.reason and "p < " in entry.reason
    assert {answered(client, "law") for _ in range(20)} == {"law@1"}
    assert [entry.kind for _, entry in canaries.history().valid].count("rollback") == 1
    ended = told(server)["canary"]
    assert (ended["state"], ended["ended_by"], ended["id"]) == ("ended", "rollback", f"law@{WILD}")


def test_refused_requests_and_clients_that_leave_are_not_the_releases(
    client: openai.OpenAI, server: Live, canaries: CanaryLedger
) -> None:
    start(canaries, server, 2, 0.5, bounds=Bounds(min_requests=1))
    for number in range(30):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="law", prompt="word " * (2000 if number % 2 else 1), temperature=number % 2 or 5)
    with httpx.stream(
        "POST", f"{server.openai_url}/completions", json={"model": "law", "prompt": PROMPT, "max_tokens": 400, "stream": True}
    ) as stream:
        next(stream.iter_lines())

    def left() -> int:
        canary = server.parts.canaries.described("law")
        assert canary is not None and isinstance(seen := canary["seen"], dict)
        return sum(side["of_clients"] for side in (seen["canary"], seen["champion"]))  # type: ignore[index, call-overload]

    eventually(lambda: left() == 1)
    shown = server.parts.canaries.described("law")
    assert shown is not None and shown["state"] == "serving"
    assert "'failed': 0" in str(shown["seen"]) and "'failed': 1" not in str(shown["seen"])


def test_a_shadow_answers_nobody_and_tells_how_it_compares(client: openai.OpenAI, server: Live, canaries: CanaryLedger) -> None:
    start(canaries, server, 2, 1.0, shadow=True)
    assert {answered(client, "law") for _ in range(6)} == {"law@1"}

    def mirrored() -> dict[str, object]:
        mirror = told(server)["canary"]["mirror"]
        assert isinstance(mirror, dict)
        return mirror

    eventually(lambda: mirrored()["outcomes"] == {"completed": 6})
    greedy = mirrored()["greedy"]
    assert isinstance(greedy, dict) and (greedy["compared"], greedy["same_text"]) == (6, 0.0)
    seen = told(server)["canary"]["seen"]
    assert isinstance(seen, dict)
    assert (seen["canary"]["requests"], seen["champion"]["requests"]) == (6, 6)


def test_a_broken_shadow_is_rolled_back_and_no_client_notices(
    client: openai.OpenAI, server: Live, canaries: CanaryLedger
) -> None:
    start(canaries, server, WILD, 1.0, shadow=True, bounds=Bounds(min_requests=8))
    for _ in range(150):
        assert answered(client, "law") == "law@1"
        if canaries.under_way() is None:
            break
    assert canaries.history().valid[-1][1].kind == "rollback"
