"""The ledger moves while requests run: hints, webhooks, promotions and rollbacks over HTTP, and no reply of two versions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from gated_names import report
from live_service import Live, live, small
from mlflow.webhooks.delivery import _generate_hmac_signature
from running_service import client_of, write
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.ledger import Ledger
from registry.names import ReleaseName
from registry.release import publish
from registry.tracking import Tracking
from registry.verdicts import record_verdict
from service.webhooks import MAX_KEPT, Deliveries

SECRET = "a secret of the webhook"
PROMPT = "Start with 12. Add 5. What is the result?"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Tracking:
    """law 1 (champion) and 2; tax 1 (champion) and 2."""
    home = tmp_path_factory.mktemp("home")
    tracking = store_at(home)
    for seed, name in ((1, "law"), (2, "law"), (3, "tax"), (4, "tax")):
        write_release(home / f"{name}-{seed}", session_backbone, random_lora(session_backbone, seed))
        publish(tracking, name, home / f"{name}-{seed}")
    promote(tracking, "law", 1)
    promote(tracking, "tax", 1)
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking, backbone_directory: Path) -> Iterator[Live]:
    """Looks at the ledger every half minute, unless it is hinted to."""
    with live(small(backbone_directory, tracking.cache.parent, poll_s=30, webhook_secret=SECRET)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return client_of(server)


def becomes(server: Live, name: str, release: str, within_s: float = 10.0) -> None:
    ends = time.monotonic() + within_s
    while server.parts.models.served_as(name) != release:
        assert time.monotonic() < ends, f"{name} is {server.parts.models.served_as(name)}, not {release}"
        time.sleep(0.02)


def post(server: Live, path: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.openai_url}/{path}", json=fields)


def test_a_hint_has_the_service_look_at_once_and_believes_nothing_else(server: Live, tracking: Tracking) -> None:
    promote(tracking, "law", 2)
    assert post(server, "ledger/hint", name="law", version=1, champion="tax@2").status_code == 202
    becomes(server, "law", "law@2")
    assert server.parts.models.served_as("tax") == "tax@1"
    promote(tracking, "law", 1)
    post(server, "ledger/hint")
    becomes(server, "law", "law@1")


def test_hints_without_end_make_no_more_looks_than_the_least_distance_allows(server: Live) -> None:
    looks = 0
    look = server.parts.models.refresh

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    server.parts.models.refresh = counted  # type: ignore[method-assign]
    try:
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            post(server, "ledger/hint")
    finally:
        server.parts.models.refresh = look  # type: ignore[method-assign]
    assert 1 <= looks <= 5


def delivered(
    server: Live, secret: str, sent: float, body: bytes = b'{"entity": "model_version_alias"}', delivery: str | None = None
) -> httpx.Response:
    """As MLflow signs it."""
    delivery = delivery or str(uuid.uuid4())
    signature = _generate_hmac_signature(secret, delivery, str(int(sent)), body.decode())
    headers = {"x-mlflow-signature": signature, "x-mlflow-timestamp": str(int(sent)), "x-mlflow-delivery-id": delivery}
    return httpx.post(f"{server.openai_url}/ledger/webhook", content=body, headers=headers)


def test_a_webhook_of_mlflow_is_a_hint_where_its_signature_is_right_and_fresh(server: Live) -> None:
    assert delivered(server, SECRET, time.time()).status_code == 202
    assert delivered(server, "another secret altogether", time.time()).status_code == 401
    assert {delivered(server, SECRET, time.time() + late).status_code for late in (-3600, 3600, -310, 310)} == {401}
    assert delivered(server, SECRET, time.time(), json.dumps("a" * 2**17).encode()).status_code == 413
    assert post(server, "ledger/webhook").status_code == 401
    strange = httpx.post(f"{server.openai_url}/ledger/webhook", headers={"x-mlflow-timestamp": "9" * 5000})
    assert strange.status_code == 401


def test_a_webhook_that_was_recorded_and_sent_again_is_refused(server: Live) -> None:
    now = time.time()
    assert delivered(server, SECRET, now, delivery="one").status_code == 202
    again = delivered(server, SECRET, now, delivery="one")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "replayed_delivery")
    assert delivered(server, SECRET, now, b"{}", delivery="two").status_code == 202
    assert delivered(server, "another secret altogether", now, delivery="three").status_code == 401
    assert delivered(server, SECRET, now, delivery="three").status_code == 202, "what is not signed takes no id away"


def test_a_webhook_changes_nothing_but_when_the_service_looks(server: Live, tracking: Tracking) -> None:
    """It says that tax@2 is champion, under the right signature; the ledger says something else."""
    before = Ledger(tracking, "tax").records()
    body = {"entity": "model_version_alias", "action": "created", "data": {"name": "tax", "alias": "champion", "version": "2"}}
    assert delivered(server, SECRET, time.time(), json.dumps(body).encode()).status_code == 202
    promote(tracking, "law", 2)
    delivered(server, SECRET, time.time(), json.dumps(body).encode())
    becomes(server, "law", "law@2")
    assert server.parts.models.served_as("tax") == "tax@1" and Ledger(tracking, "tax").records() == before
    promote(tracking, "law", 1)
    delivered(server, SECRET, time.time())
    becomes(server, "law", "law@1")


def test_without_a_secret_no_webhook_is_taken(tracking: Tracking, backbone_directory: Path) -> None:
    with live(small(backbone_directory, tracking.cache.parent)) as without:
        answers = [delivered(without, secret, time.time()) for secret in ("", SECRET)]
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(403, "not_allowed")] * 2


def test_deliveries_are_remembered_for_as_long_as_they_would_be_let_in() -> None:
    deliveries = Deliveries()
    assert deliveries.take("one", 1000.0, 1000.0) and not deliveries.take("one", 1000.0, 1299.0)
    assert all(deliveries.take(str(number), 1000.0, 1000.0) for number in range(MAX_KEPT - 1))
    assert not deliveries.take("one more", 1000.0, 1000.0), "more than can be remembered are refused"
    assert deliveries.take("one more", 1400.0, 1400.0), "and forgotten once their time is over"


def test_a_rollback_goes_through_the_ledger_and_is_served_at_once(server: Live, tracking: Tracking) -> None:
    promote(tracking, "tax", 2)
    post(server, "ledger/hint")
    becomes(server, "tax", "tax@2")
    answer = post(server, "releases/tax/rollback", reason="it was worse")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    becomes(server, "tax", "tax@1")
    entry = Ledger(tracking, "tax").entries()[-1].entry
    assert entry is not None and (entry.kind, entry.reason, entry.actor) == ("rollback", "it was worse", "anyone")


@pytest.mark.parametrize(
    ("path", "fields", "status", "code"),
    [
        ("releases/tax/rollback", {}, 400, "missing_parameter"),
        ("releases/tax/rollback", {"reason": "x", "to": 9}, 400, "refused_by_the_ledger"),
        ("releases/never/rollback", {"reason": "x"}, 400, "refused_by_the_ledger"),
        ("releases/tax/promote", {"version": 9}, 404, "release_not_found"),
        ("releases/never/promote", {"version": 1}, 404, "release_not_found"),
        ("releases/tax/promote", {"version": 2, "override": True}, 400, "invalid_value"),
        ("releases/tax/promote", {"version": 2, "expected_head": 0}, 409, "champion_moved"),
        ("releases/tax/rollback", {"reason": "x", "expected_head": 1}, 409, "champion_moved"),
    ],
)
def test_what_the_ledger_would_not_take_is_refused(
    server: Live, path: str, fields: dict[str, object], status: int, code: str
) -> None:
    answer = post(server, path, **fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert str(server.parts.settings.home) not in answer.text


def test_who_saw_the_ledger_as_it_is_may_change_it(server: Live, tracking: Tracking) -> None:
    promote(tracking, "tax", 2)
    head = Ledger(tracking, "tax").head().number
    stale = post(server, "releases/tax/rollback", reason="x", expected_head=head - 1)
    assert stale.status_code == 409 and "entry" in stale.json()["error"]["message"]
    assert post(server, "releases/tax/rollback", reason="x", expected_head=head).json()["version"] == 1
    begun = post(server, "releases/tax/promote", version=2, expected_head=head + 1)
    assert begun.status_code == 202
    post(server, f"releases/promotions/{begun.json()['id']}/cancel")


def test_what_a_name_could_serve_is_told_with_the_entry_to_build_on(server: Live, tracking: Tracking) -> None:
    listed = {one["name"]: one for one in httpx.get(f"{server.openai_url}/releases").json()["data"]}
    ledger = Ledger(tracking, "tax")
    assert (listed["tax"]["champion"], listed["tax"]["head"]) == (ledger.champion_version(), ledger.head().number)
    assert [one["version"] for one in listed["tax"]["candidates"]] == [2, 1]
    never = httpx.get(f"{server.openai_url}/releases/tax/versions/2/gate")
    assert (never.status_code, never.json()["error"]["code"]) == (404, "not_gated")
    record_verdict(tracking, ReleaseName("tax", 2), report(2).model_copy(update={"subject": "tax@2"}))
    told = httpx.get(f"{server.openai_url}/releases/tax/versions/2/gate").json()
    assert (told["verdict"], told["columns"][0], told["rows"][0][:2]) == ("pass", "test", ["icd10", "pass"])


def test_a_promotion_begins_beside_the_service_and_can_be_cancelled(server: Live, tracking: Tracking) -> None:
    begun = post(server, "releases/law/promote", version=2, reason="a better one")
    assert begun.status_code == 202
    told = begun.json()
    assert (told["status"], told["release"], told["promoted"]) == ("running", "law@2", None)
    assert httpx.get(f"{server.openai_url}/releases/promotions/{told['id']}").json()["id"] == told["id"]
    cancelled = post(server, f"releases/promotions/{told['id']}/cancel").json()
    assert cancelled["status"] == "cancelled" and Ledger(tracking, "law").champion_version() == 1
    assert httpx.get(f"{server.openai_url}/fine_tuning/jobs/{told['id']}").status_code == 404, "it is no fine-tuning job"


def test_while_the_ledger_flips_no_reply_mixes_versions_and_pins_stay_what_they_are(
    server: Live, client: openai.OpenAI, tracking: Tracking
) -> None:
    alone = {f"law@{version}": write(client, f"law@{version}", max_tokens=48) for version in (1, 2)}
    assert len(set(alone.values())) == 2
    stop = False

    def ask(model: str) -> list[tuple[str, str]]:
        found = []
        while not stop:
            stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=48, stream=True)
            chunks = list(stream)
            assert len({chunk.model for chunk in chunks}) == 1
            found.append((chunks[0].model, "".join(chunk.choices[0].text for chunk in chunks)))
        return found

    with ThreadPoolExecutor(5) as pool:
        flipping = [pool.submit(ask, "law") for _ in range(3)]
        pinned = [pool.submit(ask, f"law@{version}") for version in (1, 2)]
        for version in (2, 1, 2, 1):
            promote(tracking, "law", version)
            post(server, "ledger/hint")
            becomes(server, "law", f"law@{version}")
        stop = True
        told = [one for asked in flipping for one in asked.result()]
        kept = [{model for model, _ in asked.result()} for asked in pinned]
    assert {model for model, _ in told} == {"law@1", "law@2"}
    assert all(text == alone[model] for model, text in told)
    assert kept == [{"law@1"}, {"law@2"}]
