"""Bodies that are too large, too slow or never come to their end, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import Live, live, small
from stores import store_at

MOST = 20_000
SLOW_S = 0.4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("bodies")
    store_at(home)
    with live(small(backbone_directory, home, max_body_bytes=MOST, body_timeout_s=SLOW_S)) as server:
        yield server


def post(server: Live, content: bytes | Iterator[bytes]) -> httpx.Response:
    return httpx.post(f"{server.openai_url}/completions", content=content, headers={"content-type": "application/json"})


def padded(base: str, size: int) -> bytes:
    body = json.dumps({"model": base, "prompt": "Add 5.", "max_tokens": 2, "padding": ""}).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def raw(server: Live, *pieces: bytes) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for piece in (head, *pieces):
        connection.sendall(piece)
    return connection


def test_a_body_of_the_largest_size_is_read(server: Live, base: str) -> None:
    assert post(server, padded(base, MOST)).status_code == 200


def test_a_larger_one_is_refused_by_what_it_says_of_itself(server: Live, base: str) -> None:
    answer = post(server, padded(base, MOST + 1))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert answer.headers["x-should-retry"] == "false" and answer.headers["x-request-id"]


def test_nothing_of_what_says_it_is_too_large_is_read(server: Live) -> None:
    with raw(server, b"Content-Length: 100000000000\r\n\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_one_that_says_no_size_is_refused_where_it_exceeds_it(server: Live) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with raw(server, b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")  # while its end has not come


def test_one_that_never_ends_is_given_up(server: Live) -> None:
    began = time.monotonic()
    with raw(server, b"Content-Length: 100\r\n\r\n", b"{") as connection:
        answer = connection.recv(4000)
        assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer + connection.recv(4000)
    assert time.monotonic() - began >= SLOW_S


def test_clients_that_hang_up_in_their_body_leave_nothing_behind(server: Live, base: str) -> None:
    for _ in range(20):
        raw(server, b"Content-Length: 100\r\n\r\n", b"{").close()
    assert post(server, padded(base, 200)).status_code == 200


def test_large_bodies_are_bounded_all_together(server: Live, base: str) -> None:
    # 18 of nearly the largest size at once: 16 times the largest may be held.
    waiting = [raw(server, f"Content-Length: {MOST}\r\n\r\n".encode(), b"x" * (MOST - 10)) for _ in range(18)]
    answers = [connection.recv(20)[:12] for connection in waiting]
    assert b"HTTP/1.1 429" in answers and b"HTTP/1.1 408" in answers
    for connection in waiting:
        connection.close()
    assert post(server, padded(base, MOST)).status_code == 200
