"""What is wrong with a request before it means anything: each has a status, a code and a sentence in the OpenAI shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import Live, live, small

from service.errors import without_paths

CHAT = "/v1/chat/completions"
VALID = '{"model": "backbone0", "messages": [{"role": "user", "content": "Add 5."}], "max_tokens": 1'


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(small(backbone_directory, tmp_path_factory.mktemp("errors"))) as server:
        yield server


BODIES: dict[str, bytes] = {
    "no JSON": b"model=law",
    "cut": b'{"model": "law", "messages": [',
    "bytes that are no UTF-8": b'{"model": "\xff\xfe", "messages": []}',
    "a surrogate in UTF-8": b'{"model": "\xed\xa0\x80", "messages": []}',
    "half a surrogate pair": b'{"model": "\\ud800", "messages": []}',
    "NaN": f'{VALID}, "temperature": NaN}}'.encode(),
    "infinity": f'{VALID}, "temperature": -Infinity}}'.encode(),
    "infinity by its exponent": f'{VALID}, "metadata": {{"a": 1e999}}}}'.encode(),
    "lists in lists": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects in objects": b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
    "a number of thousands of digits": f'{VALID}, "seed": {"9" * 5000}}}'.encode(),
    "something behind the end": f"{VALID}}}}}".encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_not_json_is_refused_as_such(server: Live, body: bytes) -> None:
    reply = httpx.post(f"{server.url}{CHAT}", content=body, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (400, "invalid_json", "invalid_request_error")
    assert len(error["message"]) < 400


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"null", b"3"], ids=["empty", "list", "text", "null", "number"])
def test_a_body_that_is_no_object_is_refused(server: Live, body: bytes) -> None:
    reply = httpx.post(f"{server.url}{CHAT}", content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("messages", [[], "hi"])
def test_messages_that_are_no_list_are_told_in_words_of_json(server: Live, messages: object) -> None:
    reply = httpx.post(f"{server.url}{CHAT}", json={"model": "backbone0", "messages": messages})
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and "list" in message.lower() and "tuple" not in message.lower()


def test_a_sentence_of_ours_ends_with_one_full_stop(server: Live) -> None:
    body = {"model": "backbone0", "training_file": "file-x", "suffix": "../x"}
    message = httpx.post(f"{server.openai_url}/fine_tuning/jobs", json=body).json()["error"]["message"]
    assert message.endswith("Try medicine.coding.")


def test_another_content_type_is_told_apart(server: Live) -> None:
    reply = httpx.post(f"{server.url}{CHAT}", data={"model": "law"})
    assert reply.status_code == 400 and "Content-Type: application/json" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/v2/completions", "/v1/chat/completions/x", "/v1"])
def test_an_unknown_path_is_not_found_in_the_same_shape(server: Live, path: str) -> None:
    reply = httpx.get(f"{server.url}{path}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


def test_paths_that_a_scanner_tries_are_counted_and_make_no_series(server: Live) -> None:
    def told() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines if not one.startswith("#"))}

    tried = ("/wp-login.php", "/.env", "/.git/config", "/%2e%2e/x", "/cgi-bin/a?b=1", "/v1/wp-login.php")
    for path in ("/nothing", "/v1/models/nothing"):  # the series of all wrong paths, and of all unknown models
        httpx.get(server.url + path)
    before = told()
    answers = [httpx.request(method, server.url + path).status_code for path in tried for method in ("GET", "POST", "PROPFIND")]
    answers += [httpx.get(f"{server.url}/v1/models/{name}").status_code for name in ("wp-login.php", ".env", "a/b")]
    after = told()
    assert set(answers) == {404} and after.keys() == before.keys()
    counted = 'graftline_turned_away_total{code="unknown_url"}'
    assert after[counted] - before[counted] == 3 * len(tried)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET"), ("PATCH", "/tokenize", "POST")],
)
def test_a_wrong_method_is_told_the_right_ones(server: Live, method: str, path: str, allowed: str) -> None:
    reply = httpx.request(method, f"{server.url}{path}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allowed


def test_every_answer_carries_the_request_s_id(server: Live) -> None:
    for path in (CHAT, "/v1/models", "/nothing"):
        assert httpx.get(f"{server.url}{path}", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", ["r" * 129, "<script>", "trace-7;a", "a b", "a\tb", "\u00e9".encode(), ""], ids=repr)
def test_an_id_that_is_too_long_or_holds_other_signs_is_replaced_whole(server: Live, given: str | bytes) -> None:
    made = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": given}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_the_longest_id_that_is_kept_has_128_signs(server: Live) -> None:
    longest = "aZ09_.:-" * 16
    assert httpx.get(f"{server.url}/v1/models", headers={"x-request-id": longest}).headers["x-request-id"] == longest


def test_a_reply_s_id_holds_the_request_s(server: Live, base: str) -> None:
    body = {"model": base, "prompt": "Add 5.", "max_tokens": 1}
    reply = httpx.post(f"{server.openai_url}/completions", json=body, headers={"x-request-id": "mine-2"})
    assert reply.json()["id"] == "cmpl-mine-2"


def test_the_service_answers_after_all_that(server: Live, base: str) -> None:
    body = {"model": base, "prompt": "Add 5.", "max_tokens": 1}
    assert httpx.post(f"{server.openai_url}/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "/a" * 5000), ("model", "backbone0@" + "1" * 5000), ("model", "x" * 200_000), ("stop", ["a" * 200_000] * 5)],
    ids=["a path", "a version", "a name", "stops"],
)
def test_a_value_without_end_is_the_clients_fault_and_is_not_sent_back_whole(server: Live, field: str, value: object) -> None:
    body = {"model": "backbone0", "messages": [{"role": "user", "content": "Add 5."}], "max_tokens": 1, field: value}
    reply = httpx.post(f"{server.url}{CHAT}", json=body, timeout=30)
    assert reply.status_code in (400, 404), reply.text[:300]
    assert len(reply.content) < 2000


def test_a_path_of_this_machine_is_cut_to_its_last_part() -> None:
    assert without_paths(f"{Path(__file__)} is damaged.") == f"{Path(__file__).name} is damaged."
    assert without_paths("POST /v1/completions is not offered.") == "POST /v1/completions is not offered."
    assert without_paths("/" + "a/" * 5000 + "b") == "/" + "a/" * 5000 + "b"  # no disk is asked, however long


def test_head_is_refused_where_it_is_not_offered(server: Live) -> None:
    reply = httpx.head(f"{server.url}/v1/models")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
