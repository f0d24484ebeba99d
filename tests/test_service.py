"""The running service, driven over a real socket by the OpenAI client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from running_service import PROMPT, serving, write
from small_releases import promote, random_lora, random_thoughts, write_release
from stores import store_at

from adapters.backbone import Backbone
from registry.release import publish
from registry.tracking import Tracking
from service.serve import Server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Tracking:
    """law 1 and 2, medicine 1, thoughts 1 and wild 1 (weights that overflow).

    All but law 2 and wild are champions.
    """
    folder = tmp_path_factory.mktemp("service")
    tracking = store_at(folder / "home")
    releases = {
        "law": [random_lora(session_backbone, 1), random_lora(session_backbone, 2)],
        "medicine": [random_lora(session_backbone, 3)],
        "thoughts": [random_thoughts(session_backbone, 4)],
        "wild": [random_lora(session_backbone, 5, size=1e30)],
    }
    for name, versions in releases.items():
        for number, adapter in enumerate(versions):
            directory = folder / f"{name}-{number}"
            write_release(directory, session_backbone, adapter)
            publish(tracking, name, directory)
    for name in ("law", "medicine", "thoughts"):
        promote(tracking, name, 1)
    return tracking


@pytest.fixture(scope="module")
def server(tracking: Tracking, backbone_directory: Path) -> Iterator[Server]:
    """Under BentoML, as users run it."""
    with serving(tracking, backbone_directory) as server:
        yield server


def metric(server: Server, sample: str) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(sample):
            return float(line.rpartition(" ")[2])
    return 0.0


def eventually(holds: Callable[[], bool], within_s: float = 15.0) -> None:
    ends = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends, f"not so within {within_s} s"
        time.sleep(0.05)


def test_the_models_are_the_backbone_and_the_champions(client: openai.OpenAI, base: str) -> None:
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert set(cards) == {base, "law", "medicine", "thoughts"}
    assert cards["medicine"]["root"] == "medicine@1" and cards["medicine"]["parent"] == base


def test_one_model_is_described_by_name_and_by_version(client: openai.OpenAI) -> None:
    assert client.models.retrieve("medicine").model_dump()["root"] == "medicine@1"
    assert client.models.retrieve("law@2").model_dump()["root"] == "law@2"


def test_the_service_is_alive_ready_and_reads_its_registry(server: Server) -> None:
    assert httpx.get(f"{server.url}/livez").status_code == httpx.get(f"{server.url}/readyz").status_code == 200
    assert httpx.get(f"{server.openai_url}/models").json()["graftline"]["registry"] == "ok"


def test_a_chat_reply_says_what_answered_and_what_it_cost(client: openai.OpenAI, session_backbone: Backbone) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    reply = client.chat.completions.create(model="medicine", messages=messages, max_tokens=5)  # type: ignore[arg-type]
    assert (reply.object, reply.model) == ("chat.completion", "medicine@1")
    assert (reply.choices[0].message.role, reply.choices[0].finish_reason) == ("assistant", "length")
    prompt = session_backbone.chat_ids([{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}])
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (
        len(prompt),
        5,
        len(prompt) + 5,
    )


def test_a_prompt_as_text_and_as_token_ids_is_the_same_prompt(
    client: openai.OpenAI, base: str, session_backbone: Backbone
) -> None:
    ids = session_backbone.encode(PROMPT)
    assert write(client, base, prompt=ids) == write(client, base)


def test_several_prompts_give_one_choice_each_in_order(client: openai.OpenAI) -> None:
    prompts = ["Answer: 14", PROMPT, "Which chapter?"]
    reply = client.completions.create(model="medicine", prompt=prompts, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.text for choice in reply.choices] == [write(client, "medicine", prompt=p, max_tokens=8) for p in prompts]


def test_a_stream_opens_with_the_role_and_closes_with_the_usage(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(model="medicine", messages=messages, max_tokens=24)  # type: ignore[call-overload]
    stream = client.chat.completions.create(
        model="medicine",
        messages=messages,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    )
    first, *middle, finish, usage = list(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == whole.choices[0].message.content
    assert finish.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == [] and usage.usage.total_tokens == whole.usage.total_tokens
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in (first, *middle, finish))


def test_a_stream_ends_with_done(server: Server) -> None:
    body = {"model": "medicine", "prompt": PROMPT, "max_tokens": 3, "stream": True}
    reply = httpx.post(f"{server.openai_url}/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.endswith("data: [DONE]\n\n") and "usage" not in reply.text


def test_a_streamed_completion_of_several_prompts_keeps_them_apart(client: openai.OpenAI) -> None:
    prompts = ["Answer: 14", PROMPT]
    texts = ["", ""]
    for chunk in client.completions.create(model="medicine", prompt=prompts, max_tokens=8, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [write(client, "medicine", prompt=prompt, max_tokens=8) for prompt in prompts]


def test_a_stop_text_ends_the_completion_and_is_not_returned(client: openai.OpenAI) -> None:
    text = write(client, "medicine")
    stop = text[len(text) // 2 :][:2]
    reply = client.completions.create(model="medicine", prompt=PROMPT, max_tokens=24, stop=["never written", stop])
    assert reply.choices[0].text == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_a_seed_makes_sampling_reproducible(client: openai.OpenAI) -> None:
    first, again, other = (write(client, "medicine", temperature=1.0, seed=seed) for seed in (7, 7, 8))
    assert first == again != other


def test_temperature_left_open_is_the_releases_own_policy(client: openai.OpenAI) -> None:
    # These releases decode greedily.
    assert write(client, "medicine") == write(client, "medicine", temperature=0.0)


def test_adapters_in_one_batch_write_what_they_write_alone(client: openai.OpenAI, base: str) -> None:
    models = [base, "medicine", "thoughts", "law@2"]
    alone = {model: write(client, model) for model in models}
    assert len(set(alone.values())) == len(models)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda model: (model, write(client, model)), models * 4))
    assert together == [(model, alone[model]) for model in models * 4]


def test_soft_thoughts_are_served(client: openai.OpenAI, base: str) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    thoughtful, plain = (
        client.chat.completions.create(model=model, messages=messages, max_tokens=16)  # type: ignore[call-overload]
        for model in ("thoughts", base)
    )
    assert thoughtful.model == "thoughts@1"
    assert thoughtful.choices[0].message.content != plain.choices[0].message.content
    # Usage counts what the client sent, not what the release adds.
    assert thoughtful.usage.prompt_tokens == plain.usage.prompt_tokens


def test_without_a_limit_a_completion_fills_the_context_and_no_more(client: openai.OpenAI, session_backbone: Backbone) -> None:
    long = [session_backbone.encode("a")[0]] * (session_backbone.context_length - 20)
    for model in ("medicine", "thoughts"):
        reply = client.completions.create(model=model, prompt=long, max_tokens=10_000)
        assert reply.usage is not None and reply.usage.total_tokens <= session_backbone.context_length


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        write(client, "astrology")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "medicine" in caught.value.message


def test_a_prompt_beyond_the_context_is_refused_and_not_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="medicine", messages=[{"role": "user", "content": "word " * 2000}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"suffix": "x"}, "suffix"), ({"temperature": 5}, "temperature"), ({"logprobs": 99}, "logprobs"), ({"n": 0}, "n")],
)
def test_what_is_not_offered_is_refused_by_name(client: openai.OpenAI, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        write(client, "medicine", **fields)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_a_token_id_outside_the_vocabulary_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="999999"):
        write(client, "medicine", prompt=[1, 999_999])


def test_a_wrong_address_and_a_broken_body_are_answered_in_the_openai_shape(server: Server) -> None:
    for reply, status in (
        (httpx.get(f"{server.openai_url}/embeddings"), 404),
        (httpx.put(f"{server.openai_url}/chat/completions"), 405),
        (httpx.post(f"{server.openai_url}/completions", content=b"{", headers={"content-type": "application/json"}), 400),
        (httpx.post(f"{server.openai_url}/completions", json=[]), 400),
        (httpx.post(f"{server.openai_url}/completions", json={"model": "law"}), 400),
    ):
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_an_adapter_whose_values_overflow_fails_its_own_request_only(client: openai.OpenAI) -> None:
    before = write(client, "medicine")
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(write, client, "medicine")
        with pytest.raises(openai.InternalServerError) as caught:
            write(client, "wild@1")
    assert caught.value.code == "model_not_finite"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert before == beside.result() == write(client, "medicine")


def test_the_clients_request_id_comes_back(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        write(client, "astrology", extra_headers={"x-request-id": "trace-7"})
    assert caught.value.request_id == "trace-7"


def test_a_client_that_leaves_a_stream_frees_its_row(server: Server) -> None:
    cancelled = 'graftline_requests_total{model="medicine@1",outcome="cancelled"}'
    before = metric(server, cancelled)
    body = {"model": "medicine", "prompt": [PROMPT] * 64, "max_tokens": 480, "temperature": 2.0, "stream": True}
    with httpx.stream("POST", f"{server.openai_url}/completions", json=body) as reply:
        next(reply.iter_lines())
    eventually(lambda: metric(server, cancelled) == before + 1)
    assert metric(server, 'graftline_running_rows{model="medicine@1"}') == 0


def test_a_client_that_leaves_a_plain_request_frees_its_row(server: Server) -> None:
    cancelled = 'graftline_requests_total{model="medicine@1",outcome="cancelled"}'
    before = metric(server, cancelled)
    body = {"model": "medicine", "prompt": [PROMPT] * 64, "max_tokens": 480, "temperature": 2.0}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.openai_url}/completions", json=body, timeout=0.2)
    eventually(lambda: metric(server, cancelled) == before + 1)
    assert metric(server, 'graftline_running_rows{model="medicine@1"}') == 0


def test_metrics_count_by_adapter_and_never_by_what_was_typed(client: openai.OpenAI, server: Server) -> None:
    requests = 'graftline_requests_total{model="medicine@1",outcome="completed"}'
    tokens = 'graftline_generated_tokens_total{model="medicine@1"}'
    before = metric(server, requests), metric(server, tokens)
    write(client, "medicine", max_tokens=4, temperature=0.0)
    assert metric(server, requests) == before[0] + 1
    assert before[1] < metric(server, tokens) <= before[1] + 4
    with pytest.raises(openai.NotFoundError):
        write(client, "never-heard-of")
    assert "never-heard-of" not in httpx.get(f"{server.url}/metrics").text
    assert metric(server, 'graftline_requests_total{model="unknown",outcome="refused"}') > 0


def test_a_promotion_is_served_without_dropping_or_mixing_a_request(client: openai.OpenAI, tracking: Tracking) -> None:
    expected = {f"law@{version}": write(client, f"law@{version}") for version in (1, 2)}
    seen: list[tuple[str, str]] = []
    failures: list[Exception] = []
    is_over = threading.Event()

    def keep_streaming() -> None:
        while not is_over.is_set():
            try:
                chunks = list(client.completions.create(model="law", prompt=PROMPT, max_tokens=24, stream=True))
            except openai.OpenAIError as error:
                failures.append(error)
                return
            assert len({chunk.model for chunk in chunks}) == 1
            seen.append((chunks[0].model, "".join(chunk.choices[0].text for chunk in chunks)))

    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(keep_streaming) for _ in range(3)]
        try:
            eventually(lambda: len(seen) >= 3)
            promote(tracking, "law", 2)
            eventually(lambda: any(model == "law@2" for model, _ in seen), within_s=30)
        finally:
            is_over.set()
        for stream in streams:
            stream.result()
    assert not failures
    assert set(seen) == set(expected.items())
    assert write(client, "law") == expected["law@2"]
