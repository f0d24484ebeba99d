"""Sweeps from recipes: the server's own, and what a request may say of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import Live, live, small
from stores import store_at

from service.keys import KeyStore, Quota

OWN = 'name = "mine"\ndomain = "icd10-chapter"\nsearch = ["method.learning_rate"]\n[study]\ntrials = 3\n'
OPERATORS = 'protected = ["arithmetic"]\n[gate]\nmargin = 0.01\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    store_at(home)
    (home / "recipes").mkdir()
    (home / "recipes" / "codes.toml").write_text(OWN.replace("mine", "codes"))
    (home / "job.toml").write_text(OPERATORS)
    return home


@pytest.fixture(scope="module")
def keys(home: Path) -> dict[str, dict[str, str]]:
    """Headers by scope."""
    made = {scope: KeyStore(home).create(scope, (scope,), Quota()).secret for scope in ("complete", "tune", "admin")}
    return {scope: {"authorization": f"Bearer {secret}"} for scope, secret in made.items()}


@pytest.fixture(scope="module")
def server(home: Path, keys: object, backbone_directory: Path) -> Iterator[Live]:
    """Jobs wait: none has a process."""
    given = {"recipes": home / "recipes", "job_recipe": home / "job.toml", "max_queued_jobs": 50}
    with live(small(backbone_directory, home, **given)) as server:
        jobs = server.parts.jobs
        assert jobs is not None
        jobs._at_once = {}
        yield server


def sweep(server: Live, headers: dict[str, str], **fields: object) -> httpx.Response:
    return httpx.post(f"{server.openai_url}/sweeps", json=fields, headers=headers)


def test_the_servers_recipes_are_told_and_begun_by_their_names(server: Live, keys: dict[str, dict[str, str]]) -> None:
    (listed,) = httpx.get(f"{server.openai_url}/recipes", headers=keys["tune"]).json()["data"]
    assert (listed["id"], 'domain = "icd10-chapter"' in listed["toml"]) == ("codes", True)
    begun = sweep(server, keys["tune"], recipe="codes", name="triage", trials=1, seed=4).json()
    assert (begun["object"], begun["status"], begun["suffix"], begun["seed"]) == ("fine_tuning.job", "queued", "triage", 4)
    assert begun["graftline"]["recipe"] == {"domain": "icd10-chapter", "trials": 1, "from": "codes"}
    watched = httpx.get(f"{server.openai_url}/fine_tuning/jobs/{begun['id']}", headers=keys["tune"])
    assert watched.json()["id"] == begun["id"]


def test_a_recipe_of_ones_own_gets_the_operators_gate(server: Live, keys: dict[str, dict[str, str]], home: Path) -> None:
    begun = sweep(server, keys["tune"], toml=OWN).json()
    assert begun["suffix"] == "mine"
    stored = (home / "jobs" / begun["id"] / "recipe.json").read_text()
    assert '"margin": 0.01' in stored and '"protected": ["arithmetic"]' in stored and '"trials": 3' in stored


@pytest.mark.parametrize("part", OPERATORS.split("\n", 1))
def test_the_gate_is_the_operators_to_say(server: Live, keys: dict[str, dict[str, str]], part: str) -> None:
    own = part + "\n" + OWN if part.startswith("protected") else OWN + part
    refused = sweep(server, keys["tune"], toml=own)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert sweep(server, keys["admin"], toml=own).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({}, 400, "give one of them"),
        ({"recipe": "codes", "toml": OWN}, 400, "give one of them"),
        ({"recipe": "../job"}, 404, "There are: codes"),
        ({"toml": "name = "}, 400, "A recipe is TOML"),
        ({"toml": OWN + "[fit]\nprocesses = 9\n"}, 400, "'fit'"),
        ({"toml": 'backbone = "other"\n' + OWN}, 400, "'backbone'"),
        ({"toml": OWN.replace("icd10-chapter", "/etc/passwd")}, 400, "names no files"),
        ({"toml": OWN.replace("icd10-chapter", "mine.toml")}, 400, "names no files"),
        ({"toml": OWN.replace("icd10-chapter", "nowhere")}, 400, "nowhere"),
        ({"toml": OWN + "bogus = 1\n"}, 400, "bogus"),
        ({"recipe": "codes", "name": "a/b"}, 400, "holds none of"),
        ({"recipe": "codes", "trials": 0}, 400, "trials"),
    ],
)
def test_what_breaks_a_rule_is_refused_before_there_is_a_job(
    server: Live, keys: dict[str, dict[str, str]], fields: dict[str, object], status: int, told: str
) -> None:
    assert server.parts.jobs is not None
    before = server.parts.jobs.store.ids("fine_tuning")
    refused = sweep(server, keys["tune"], **fields)
    assert refused.status_code == status and told in refused.json()["error"]["message"], refused.text
    assert str(server.parts.settings.home) not in refused.text
    assert server.parts.jobs.store.ids("fine_tuning") == before


def test_who_may_only_complete_begins_nothing(server: Live, keys: dict[str, dict[str, str]]) -> None:
    refused = sweep(server, keys["complete"], recipe="codes")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
