"""The console's files: what a browser is held to, and that nothing of it comes from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import Live, live, small
from stores import store_at

from service.keys import KeyStore, Quota
from service.routes.console import ASSETS, FOLDER


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path) -> Iterator[Live]:
    """With keys."""
    home = tmp_path_factory.mktemp("home")
    store_at(home)
    KeyStore(home).create("reader", ("complete",), Quota())
    with live(small(backbone_directory, home)) as server:
        yield server


def test_the_page_is_open_and_what_it_shows_is_not(server: Live) -> None:
    page = httpx.get(server.url, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/console/")
    assert httpx.get(f"{server.url}/console", follow_redirects=True).url.path == "/console/"
    assert httpx.get(f"{server.openai_url}/models").status_code == 401


@pytest.mark.parametrize("name", ["", *ASSETS])
def test_the_browser_is_held_to_this_server_and_to_these_files(server: Live, name: str) -> None:
    answer = httpx.get(f"{server.url}/console/{name}")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers
    again = httpx.get(f"{server.url}/console/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "../app.py", "__init__.py", "a" * 5000])
def test_no_other_file_is_given(server: Live, name: str) -> None:
    """What leads out of the folder is no path of the console's: without a key it is not told whether it is one."""
    assert httpx.get(f"{server.url}/console/{name}").status_code == (401 if "app.py" in name else 404)


@pytest.mark.parametrize("name", ASSETS)
def test_a_file_names_no_other_host_and_makes_no_markup_of_a_text(name: str) -> None:
    text = ASSETS[name].content.decode()
    assert set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|localStorage|cookie", text
    )
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", text), "the policy forbids what stands inline"


def test_every_file_that_is_imported_is_there() -> None:
    for name, asset in ASSETS.items():
        text = asset.content.decode()
        named = re.findall(r'from "\./([\w.]+)"|(?:src|href)="([\w.]+)"', text) if name.endswith((".js", ".html")) else []
        assert {first or second for first, second in named} <= ASSETS.keys(), name
    assert {file.name for file in FOLDER.iterdir()} == ASSETS.keys()


def test_every_control_has_a_name() -> None:
    page = ASSETS["index.html"].content.decode()
    labelled = set(re.findall(r'for="([\w-]+)"', page))
    for tag, attributes, inside in re.findall(r"<(input|textarea|select)([^>]*)>(?=(.{0,9}))", page):
        found = re.search(r'id="([\w-]+)"', attributes)
        in_label = re.search(rf"<label[^>]*>[^<]*<{tag}{re.escape(attributes)}>", page)
        assert in_label or (found and found[1] in labelled), (tag, attributes, inside)
