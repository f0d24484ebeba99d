"""X-rays over HTTP, of the tiny model that really computes each step from the one before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import Live, live, small
from small_releases import random_lora, random_thoughts, write_release
from stores import store_at
from thinking_backbones import thinking_directory

from adapters.backbone import TESTBED, Backbone
from evaluation.measures.information_gain import staircases
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import TASKS
from registry.release import publish
from service.keys import KeyStore, Quota
from service.xray import Chain

EXAMPLES = [one for one in TASKS["alchemy"].examples("search", 24, seed=3) if len(one.steps) == 3]
EXAMPLE, OTHER = EXAMPLES[:2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, testbed: Backbone) -> Iterator[Live]:
    """The test-bed, a LoRA `noisy`, and `soft` with soft thoughts."""
    home = tmp_path_factory.mktemp("home")
    tracking = store_at(home)
    for name, adapter in (("noisy", random_lora(testbed, 1)), ("soft", random_thoughts(testbed, 1))):
        write_release(home / name, testbed, adapter)
        publish(tracking, name, home / name)
    with live(small(TESTBED, home)) as server:
        yield server


def ask(server: Live, example: Example = EXAMPLE, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": reasoning_prompt(example)}]
    body = {"model": Path(TESTBED).name, "messages": messages, "reply": example.chain, **fields}
    return httpx.post(f"{server.openai_url}/xray", json=body, timeout=60)


@pytest.mark.parametrize("model", [None, "noisy@1", "soft@1"])
def test_gains_are_those_of_the_measure(server: Live, testbed: Backbone, model: str | None) -> None:
    told: dict[str, Any] = ask(server, **({"model": model} if model else {})).json()
    engine = server.parts.engine
    profile = None if model is None else next(name for name in engine.loaded if model.partition("@")[0] in name)
    (levels,) = staircases(engine, testbed, profile, [EXAMPLE], [EXAMPLE.steps])
    assert [told["before"], *(step["log_probability"] for step in told["steps"])] == pytest.approx(levels, abs=1e-4)
    assert sum(step["information_gain"] for step in told["steps"]) == pytest.approx(told["information_gain"], abs=1e-6)
    assert [step["text"] for step in told["steps"]] == list(EXAMPLE.steps)


def test_the_answer_of_one_who_computes_rests_on_the_chain(server: Live) -> None:
    told = ask(server, breaks=["cut", "filled", "swapped"], other=OTHER.chain).json()
    assert told["information_gain"] > 1 and told["answer"] == EXAMPLE.answer
    cut = told["breaks"]["cut"]
    assert [one["kept"] for one in cut] == [0, 1, 2, 3]
    assert cut[-1]["same"] and not cut[0]["same"] and not cut[1]["same"]
    for kind in ("filled", "swapped"):
        assert [one["kept"] for one in told["breaks"][kind]] == [0, 1, 2] and not told["breaks"][kind][0]["same"]
    assert told["breaks"]["swapped"][0]["log_probability"] < cut[-1]["log_probability"] and told["other_states_answer"] is False
    assert told["usage"]["prompt_tokens"] > 0 and told["model"] == Path(TESTBED).name


def test_a_chain_of_another_question_tells_nothing_about_the_answer(server: Live) -> None:
    """The negative control: it is read for the answer to this one."""
    told = ask(server, reply="\n".join(OTHER.steps), answer=EXAMPLE.answer).json()
    assert told["information_gain"] < 0.5 and not any(step["states_answer"] for step in told["steps"])


def test_only_what_is_asked_for_is_written(server: Live) -> None:
    plain, all_three = ask(server, breaks=[]).json(), ask(server, breaks=["cut", "filled"]).json()
    assert plain["breaks"] == {} and plain["usage"]["completion_tokens"] == 0
    gains = [[step["information_gain"] for step in told["steps"]] for told in (plain, all_three)]
    assert gains[0] == pytest.approx(gains[1], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"reply": "It is 4."}, "no_answer", "Answer:"),
        ({"reply": "Answer: 4"}, "no_steps", "Ask for steps"),
        ({"breaks": ["swapped"]}, "invalid_value", "other"),
        ({"breaks": ["swapped"], "other": "Answer: 4"}, "invalid_value", "other"),
        ({"breaks": ["bent"]}, "invalid_value", "cut"),
        ({"reasoning": "One.\nTwo."}, "invalid_value", "no chain between markers"),
        ({"reply": "Rot.\n" * 400 + "Answer: A"}, "too_many_rows", "Ask in parts"),
        ({"reply": "Rot 3 of A is " * 2000 + "\nAnswer: A"}, "context_length_exceeded", "Shorten"),
        ({"continue_final_message": True}, "invalid_value", "reply"),
        ({"model": "nobody"}, "model_not_found", "nobody"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing_behind(
    server: Live, fields: dict[str, object], code: str, told: str
) -> None:
    answer = ask(server, **fields)
    error = answer.json()["error"]
    assert (error["code"], answer.status_code) == (code, 404 if code == "model_not_found" else 400), error
    assert told in error["message"]
    assert server.parts.admission.queued.rows == 0 and server.parts.admission.seated == 0


def test_who_hangs_up_frees_the_rows(server: Live) -> None:
    messages = [{"role": "user", "content": reasoning_prompt(EXAMPLE)}]
    body = {"model": "noisy@1", "messages": messages, "reply": "Rot.\n" * 60 + "Answer: A", "max_answer_tokens": 64}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.openai_url}/xray", json=body, timeout=0.15)
    ends = time.monotonic() + 10
    while server.parts.admission.seated or server.parts.admission.queued.rows or server.parts.engine.stats().running:
        assert time.monotonic() < ends, "rows of nobody go on"
        time.sleep(0.02)


def test_a_deadline_ends_it(server: Live) -> None:
    answer = ask(server, reply="Rot.\n" * 60 + "Answer: A", timeout=0.02)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_it_counts_against_the_quota_of_its_key_and_needs_its_scope(tmp_path: Path) -> None:
    store_at(tmp_path)
    few = KeyStore(tmp_path).create("few", ("complete",), Quota(tokens_per_min=100)).secret
    tuner = KeyStore(tmp_path).create("tuner", ("tune",), Quota()).secret
    messages = [{"role": "user", "content": reasoning_prompt(EXAMPLE)}]
    body = {"model": Path(TESTBED).name, "messages": messages, "reply": EXAMPLE.chain}
    with live(small(TESTBED, tmp_path)) as closed:
        for secret, status, code in ((few, 429, "rate_limit_exceeded"), (tuner, 403, "missing_scope")):
            answer = httpx.post(f"{closed.openai_url}/xray", json=body, headers={"authorization": f"Bearer {secret}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_chain_between_markers_is_read_between_them(backbone_directory: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(thinking_directory(backbone_directory, tmp_path / "thinking")), device="cpu")
    chain = Chain.of(backbone, (), "It is B.\nTruly.", "One.\nTwo.")
    assert (chain.steps, chain.answer) == (("One.", "Two."), "It is B.")
    read = backbone.decode((*chain.frame.around(tuple(backbone.encode("One.\n"))), *chain.answer_ids))
    assert read == "<think>\nOne.\n</think>\n\nIt is B."
    opened = tuple(backbone.encode("<think>\n"))
    assert backbone.decode(Chain.of(backbone, opened, "Answer: B", "One.").frame.around(())) == "</think>\n\nAnswer:"
