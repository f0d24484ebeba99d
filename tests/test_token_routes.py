"""Tokens over HTTP: the same that the completions read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import Live, live, small

from adapters.backbone import Backbone
from service.admission import Admission, Bounds
from service.caller import ANYONE, Caller, Scope
from service.errors import ApiError
from service.prompts import LONG, off_the_loop
from service.quota import Quotas

HELLO = [{"role": "user", "content": "Add 5."}]


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(small(backbone_directory, tmp_path_factory.mktemp("tokens"))) as server:
        yield server


def post(server: Live, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{server.url}/{path}", json=body).json()


def test_a_text_has_the_tokens_that_a_completion_counts(server: Live, base: str, backbone: Backbone) -> None:
    found = post(server, "tokenize", {"model": base, "prompt": "Add 5 to 12."})
    assert found == {"count": found["count"], "max_model_len": 512, "tokens": backbone.encode("Add 5 to 12."), "token_strs": None}
    reply = post(server, "v1/completions", {"model": base, "prompt": "Add 5 to 12.", "max_tokens": 1})
    assert found["count"] == reply["usage"]["prompt_tokens"]


def test_a_chat_has_the_tokens_that_a_reply_counts(server: Live, base: str, backbone: Backbone) -> None:
    found = post(server, "tokenize", {"messages": HELLO, "return_token_strs": True})
    assert found["tokens"] == list(backbone.chat_ids(HELLO)) and len(found["token_strs"]) == found["count"]
    reply = post(server, "v1/chat/completions", {"model": base, "messages": HELLO, "max_tokens": 1})
    assert found["count"] == reply["usage"]["prompt_tokens"]


def test_a_text_of_megabytes_is_tokenized(server: Live) -> None:
    text = "Add 5. " * 20_000
    found = post(server, "tokenize", {"prompt": text})
    assert post(server, "detokenize", {"tokens": found["tokens"]}) == {"prompt": text}


@pytest.mark.parametrize(("path", "long"), [("tokenize", {"prompt": "Add 5. " * 1000}), ("detokenize", {"tokens": [5] * 5000})])
def test_long_texts_beyond_what_is_read_at_one_time_are_told_to_wait(server: Live, path: str, long: dict[str, Any]) -> None:
    admission = server.parts.admission
    with admission.reading(ANYONE, admission.bounds.read_characters):
        reply = httpx.post(f"{server.url}/{path}", json=long)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "server_overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert post(server, "tokenize", {"prompt": "Add 5."})["count"] > 0, "short ones take no thread"
    assert httpx.post(f"{server.url}/{path}", json=long).status_code == 200


def test_a_flood_of_long_texts_of_one_key_leaves_room_for_the_next() -> None:
    admission = Admission(Bounds(1, 1, 1, read_characters=100), Quotas())
    one, other = (Caller(key, key, frozenset({Scope.COMPLETE})) for key in ("one", "other"))
    with admission.reading(one, 50):
        with pytest.raises(ApiError), admission.reading(one, 10):
            pass
        with admission.reading(other, 500):
            pass
    with admission.reading(one, 500), pytest.raises(ApiError), admission.reading(other, 1):
        pass


def test_tokens_become_the_text_with_its_special_tokens(server: Live, backbone: Backbone) -> None:
    ids = list(backbone.chat_ids(HELLO))
    assert post(server, "detokenize", {"tokens": ids})["prompt"] == backbone.tokenizer.decode(ids)


def test_the_tokenizer_is_described(server: Live, backbone: Backbone) -> None:
    found = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (found["eos_token"], found["vocab_size"]) == ("<|im_end|>", len(backbone.tokenizer))
    assert found["chat_template"] == backbone.tokenizer.chat_template


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("detokenize", {"tokens": [10**6]}, 400, "tokens"),
        ("detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("tokenize", {"prompt": 5}, 400, "prompt"),
        ("tokenize", {"messages": []}, 400, "messages"),
        ("tokenize", {"messages": [{"role": "judge", "content": "a"}]}, 400, "messages"),
        ("tokenize", {}, 400, "prompt"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_field(
    server: Live, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = httpx.post(f"{server.url}/{path}", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_only_a_long_text_leaves_the_event_loop() -> None:
    async def threads() -> tuple[int, int]:
        return await off_the_loop(LONG, threading.get_ident), await off_the_loop(LONG + 1, threading.get_ident)

    short, long = asyncio.run(threads())
    assert short == threading.get_ident() != long


def test_the_version_is_told(server: Live) -> None:
    assert set(httpx.get(f"{server.url}/version").json()) == {"version"}
