"""Every field about tokens, over a socket: it does what it says, and without it the reply is another one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import Live, live, small
from stores import store_at

from adapters.backbone import Backbone
from engine.engine import Continuation

PROMPT = "Start with 12. Add 5."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backbone_directory: Path) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    store_at(home)
    with live(small(backbone_directory, home)) as server:
        yield server


@pytest.fixture(scope="module")
def backbone(server: Live) -> Backbone:
    return server.parts.backbone


def post(server: Live, path: str, **fields: Any) -> dict[str, Any]:
    reply = httpx.post(f"{server.openai_url}/{path}", json={"model": server.parts.models.backbone_id, **fields}, timeout=60)
    return {"status": reply.status_code, **reply.json()}


def completed(server: Live, **fields: Any) -> dict[str, Any]:
    return post(server, "completions", **{"prompt": PROMPT, "temperature": 0, "max_tokens": 8, **fields})


def chatted(server: Live, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return post(server, "chat/completions", **{"messages": messages, "temperature": 0, "max_tokens": 8, **fields})


def streamed(server: Live, path: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": server.parts.models.backbone_id, "temperature": 0, "max_tokens": 8, "stream": True, **fields}
    with httpx.stream("POST", f"{server.openai_url}/{path}", json=body, timeout=60) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["text"])


CHANGING: list[dict[str, Any]] = [
    {"presence_penalty": 2},
    {"frequency_penalty": 2},
    {"repetition_penalty": 3},
    {"logit_bias": {"300": 100}},
    {"stop_token_ids": [300], "logit_bias": {"300": 100}},
    {"min_tokens": 20, "stop": "first"},
    {"ignore_eos": True, "logit_bias": {"end": 100}},
    {"include_stop_str_in_output": True, "stop": "first"},
    {"truncate_prompt_tokens": 2},
    {"guided_regex": "[0-9]{4}"},
    {"echo": True},
]


@pytest.mark.parametrize("fields", CHANGING, ids=lambda fields: "+".join(fields))
def test_no_field_is_silently_ignored(server: Live, backbone: Backbone, fields: dict[str, Any]) -> None:
    """The first field is looked at; a second one makes the reply in which it shows."""
    given = dict(fields)
    if "stop" in given:
        given["stop"] = text(completed(server))[:1]
    if "end" in given.get("logit_bias", {}):
        given["logit_bias"] = {str(min(backbone.stop_ids)): 100}
    without = {key: value for key, value in given.items() if key != next(iter(fields))} if len(given) > 1 else {}
    changed, same = completed(server, max_tokens=24, **given), completed(server, max_tokens=24, **without)
    assert changed["status"] == same["status"] == 200, changed
    assert (text(changed), changed["usage"]) != (text(same), same["usage"])


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1.0}])
def test_a_hot_reply_of_the_likeliest_alone_is_the_greedy_one(server: Live, fields: dict[str, Any]) -> None:
    greedy, hot = text(completed(server)), [text(completed(server, temperature=2, seed=seed)) for seed in range(3)]
    assert greedy not in hot
    assert text(completed(server, temperature=2, seed=1, **fields)) == greedy


def test_n_replies_differ_repeat_and_count_their_prompt_once(server: Live) -> None:
    one = chatted(server, temperature=1, seed=7)
    three, again = (chatted(server, temperature=1, seed=7, n=3) for _ in range(2))
    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert texts[0] == one["choices"][0]["message"]["content"]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] > one["usage"]["completion_tokens"]


def test_streamed_replies_each_begin_and_end(server: Live) -> None:
    asked = {"n": 3, "temperature": 1, "seed": 7}
    messages = [{"role": "user", "content": PROMPT}]
    pieces = [piece["choices"][0] for piece in streamed(server, "chat/completions", messages=messages, **asked)]
    whole = chatted(server, **asked)["choices"]
    for index in range(3):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == whole[index]["finish_reason"]
        assert "".join(piece["delta"].get("content", "") for piece in own) == whole[index]["message"]["content"]


def test_choices_stand_prompt_by_prompt(server: Live) -> None:
    reply = completed(server, prompt=["Add 5", "Take 3"], n=2, echo=True)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:4] for choice in reply["choices"]] == ["Add ", "Add ", "Take", "Take"]


def test_the_best_of_several_is_sent(server: Live) -> None:
    asked = {"temperature": 1.5, "seed": 1, "logprobs": 0, "max_tokens": 4, "ignore_eos": True}
    all_of_them = completed(server, n=4, **asked)["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) for choice in all_of_them]
    (best,) = completed(server, best_of=4, **asked)["choices"]
    assert best["text"] == all_of_them[means.index(max(means))]["text"] and best["index"] == 0


def test_log_probabilities_of_a_chat_have_bytes_and_the_likeliest(server: Live) -> None:
    assert chatted(server)["choices"][0]["logprobs"] is None
    choice = chatted(server, logprobs=True, top_logprobs=3)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 8
    written = b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace")
    assert written.startswith(choice["message"]["content"])
    for token in content:
        assert [set(token)] == [{"token", "logprob", "bytes", "top_logprobs"}]
        assert token["top_logprobs"][0]["logprob"] == token["logprob"] and len(token["top_logprobs"]) == 3


def test_streamed_log_probabilities_are_those_of_the_whole_reply(server: Live) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    whole = chatted(server, logprobs=True, top_logprobs=1)["choices"][0]
    pieces = streamed(server, "chat/completions", messages=messages, logprobs=True, top_logprobs=1)
    said = [piece["choices"][0] for piece in pieces]
    assert [token for one in said if one["logprobs"] for token in one["logprobs"]["content"]] == whole["logprobs"]["content"]
    assert "".join(one["delta"].get("content", "") for one in said) == whole["message"]["content"]

    whole = completed(server, logprobs=1, echo=True)["choices"][0]
    said = [piece["choices"][0] for piece in streamed(server, "completions", prompt=PROMPT, logprobs=1, echo=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for piece in said if piece["logprobs"] for one in piece["logprobs"][name]] == whole["logprobs"][name]
    assert "".join(piece["text"] for piece in said) == whole["text"]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_what_lm_eval_reads_of_an_echoed_prompt(server: Live, backbone: Backbone, max_tokens: int) -> None:
    prompts = [backbone.encode(PROMPT), backbone.encode(PROMPT + " Take 3.")]
    reply = completed(server, prompt=prompts, max_tokens=max_tokens, logprobs=1, echo=True, seed=1234)
    assert reply["usage"]["prompt_tokens"] == sum(map(len, prompts)) and reply["usage"]["completion_tokens"] == 2 * max_tokens
    for ids, choice in zip(prompts, reply["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert {len(column) for column in logprobs.values()} == {len(ids) + max_tokens}
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for token, own, top in zip(
            logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert own in top.values() and own <= max(top.values()) and (token in top or any("token_id" in key for key in top))
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            if "\ufffd" not in token:
                assert choice["text"][offset:].startswith(token) or offset >= len(choice["text"])


def test_echoed_log_probabilities_are_those_that_the_engine_scores(server: Live, backbone: Backbone) -> None:
    ids = tuple(backbone.encode(PROMPT))
    told = completed(server, prompt=list(ids), max_tokens=0, logprobs=0, echo=True)["choices"][0]
    (scored,) = server.parts.engine.score([Continuation(ids[:1], ids[1:])])
    assert told["logprobs"]["token_logprobs"][1:] == pytest.approx(scored, abs=1e-5)
    assert told["text"] == PROMPT and told["finish_reason"] == "length"


def test_one_greedy_token_behind_an_echoed_prompt_costs_no_second_reading(server: Live) -> None:
    before = server.parts.engine.stats()
    told = completed(server, max_tokens=1, logprobs=1, echo=True)["choices"][0]
    after = server.parts.engine.stats()
    assert after.prompt_tokens == before.prompt_tokens and after.scored_tokens > before.scored_tokens
    assert told["text"] == PROMPT + text(completed(server, max_tokens=1))


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 120}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_fits_the_schema_that_it_is_asked_for(server: Live, stream: bool) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    if stream:
        messages = [{"role": "user", "content": PROMPT}]
        pieces = streamed(server, "chat/completions", messages=messages, response_format=named, max_tokens=200, temperature=1)
        written = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    else:
        written = chatted(server, response_format=named, max_tokens=200, temperature=1)["choices"][0]["message"]["content"]
    assert json.loads(written)["age"] <= 120


def test_other_grammars_of_the_wire_hold_too(server: Live) -> None:
    asked = {"temperature": 1, "max_tokens": 60}
    assert text(completed(server, structured_outputs={"choice": ["yes", "no"]}, **asked)) in ("yes", "no")
    assert re.fullmatch(r"[a-c]{3}", text(completed(server, guided_regex="[a-c]{3}", **asked)))
    assert set(json.loads(text(completed(server, guided_json=SCHEMA, **asked)))) == {"age"}
    cut = chatted(server, response_format={"type": "json_object"}, max_tokens=2)["choices"][0]
    assert cut["finish_reason"] == "length" and cut["message"]["content"].startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(server: Live, stream: bool) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objekt"}}}
    reply = chatted(server, response_format=named, stream=stream)
    assert reply["status"] == 400 and reply["error"]["param"] == "response_format" and "objekt" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("param", "value"),
    [("structured_outputs", {"json": {"type": "objekt"}}), ("guided_json", {"type": "objekt"}), ("guided_regex", "[")],
)
def test_a_grammar_that_cannot_be_followed_is_refused_by_the_field_that_it_stands_in(
    server: Live, param: str, value: object
) -> None:
    reply = completed(server, **{param: value})
    assert (reply["status"], reply["error"]["param"]) == (400, param)


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"stop_token_ids": [999999]}, "stop_token_ids"),
    ({"n": 200}, "n"),
    ({"suffix": "x"}, "suffix"),
    ({"max_tokens": 0}, None),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt_embeds": "AA=="}, "prompt_embeds"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_done_is_refused_by_name(server: Live, fields: dict[str, Any], param: str | None) -> None:
    reply = completed(server, **fields)
    assert reply["status"] == 400 and reply["error"]["param"] in (param, "prompt", "max_tokens")
    assert param is None or param in reply["error"]["message"]


def test_max_completion_tokens_goes_before_max_tokens_and_bookkeeping_fields_are_accepted(server: Live) -> None:
    reply = chatted(server, max_completion_tokens=2, store=True, metadata={"a": "b"}, service_tier="auto", ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 2


def test_the_likeliest_reply_is_sure_of_itself(server: Live) -> None:
    # logit_bias does not reach the log-probabilities that are told.
    plain = chatted(server, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"][0]
    biased = chatted(server, logprobs=True, max_tokens=1, logit_bias={"300": 100})["choices"][0]["logprobs"]["content"][0]
    assert biased["logprob"] < plain["logprob"] < 0 and math.isfinite(biased["logprob"])
