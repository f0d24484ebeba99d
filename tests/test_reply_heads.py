"""What a reply says of what answered it: its fingerprint and its header, plain and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_service import Live, live, small
from running_service import client_of
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.release import publish
from service.openai_shapes import Reply


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone, backbone_directory: Path) -> Iterator[Live]:
    """law 1 is champion, law 2 is published."""
    home = tmp_path_factory.mktemp("home")
    tracking = store_at(home)
    for seed in (1, 2):
        write_release(home / f"law-{seed}", session_backbone, random_lora(session_backbone, seed))
        publish(tracking, "law", home / f"law-{seed}")
    promote(tracking, "law", 1)
    with live(small(backbone_directory, home)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return client_of(server)


def fingerprints(client: openai.OpenAI, model: str) -> set[str | None]:
    """Of all four ways to ask."""
    text, chat = client.completions.create, client.chat.completions.create
    whole = (
        text(model=model, prompt="Add 5.", max_tokens=2),
        chat(model=model, messages=[{"role": "user", "content": "Add 5."}], max_tokens=2),
    )
    streams = (
        text(model=model, prompt="Add 5.", max_tokens=2, stream=True),
        chat(model=model, messages=[{"role": "user", "content": "Add 5."}], max_tokens=2, stream=True),
    )
    return {one.system_fingerprint for one in (*whole, *(chunk for stream in streams for chunk in stream))}


def test_the_fingerprint_is_of_backbone_and_release_however_the_release_is_asked_for(client: openai.OpenAI, server: Live) -> None:
    by_name, by_version, second = (fingerprints(client, model) for model in ("law", "law@1", "law@2"))
    assert len(by_name) == 1 and by_name == by_version and len(second) == 1 and by_name != second
    of_backbone = f"fp_{server.parts.backbone.fingerprint[:12]}_"
    assert all(str(one).startswith(of_backbone) for one in by_name | second)


def test_the_backbones_own_fingerprint_names_nothing_else(client: openai.OpenAI, server: Live, base: str) -> None:
    own = server.parts.backbone.fingerprint[:12]
    assert fingerprints(client, base) == {f"fp_{own}_{own}"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_header_names_what_answered(server: Live, base: str, path: str, stream: bool) -> None:
    asked = {"prompt": "Add 5."} if path == "completions" else {"messages": [{"role": "user", "content": "Add 5."}]}
    for model, answers in (("law", "law@1"), ("law@2", "law@2"), (base, base)):
        body = {"model": model, "max_tokens": 1, "stream": stream, **asked}
        reply = httpx.post(f"{server.openai_url}/{path}", json=body)
        assert reply.headers["x-graftline-model"] == answers and f'"{answers}"' in reply.text
        assert reply.headers.get("cache-control") == ("no-cache" if stream else None)


def test_a_name_that_is_not_ascii_is_percent_encoded_in_the_header() -> None:
    reply = Reply(id="a", object="chat.completion", created=0, model="org/médecine@3", system_fingerprint="fp")
    assert reply.headers == {"x-graftline-model": "org/m%C3%A9decine@3"}
