"""Releases with a decoding policy behind the running service: with an adapter, without one, narrowed, and beside plain rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from live_service import Live
from running_service import PROMPT, write
from small_releases import promote, random_lora, write_release
from stores import store_at

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.decoding.tracing import Tracing
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from registry.release import publish
from registry.tracking import Tracking

POLICY = DecodingPolicy(
    tip=SwitchPenalty(schedule="const", alpha=20, words=("W", "skin", "es")),
    budget=Budget(max_trace_tokens=12, max_answer_tokens=5),
)
UNABLE = DecodingPolicy(tip=SwitchPenalty(words=("alternatively",)))  # the backbone has no token that begins that word alone


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, session_backbone: Backbone) -> Tracking:
    """medicine (a LoRA), thrifty (the same under a policy), frugal (the policy alone), unable (a policy that cannot run), and
    storied (a policy that says of its backbone, wrongly, that it follows thought tracing)."""
    folder = tmp_path_factory.mktemp("policies")
    tracking = store_at(folder / "home")
    lora = random_lora(session_backbone, 3)
    releases = {
        "medicine": ([lora], DecodingPolicy()),
        "thrifty": ([lora], POLICY),
        "frugal": ([], POLICY),
        "unable": ([], UNABLE),
        "storied": ([], DecodingPolicy(tracing=Tracing(num_hypotheses=2, max_steps=2, max_thought_tokens=4))),
    }
    for name, (adapters, policy) in releases.items():
        write_release(folder / name, session_backbone, *adapters, policy=policy)
        publish(tracking, name, folder / name)
        promote(tracking, name, 1)
    return tracking


def decoded(client: openai.OpenAI, model: str, decoding: object) -> str:
    return write(client, model, extra_body={"decoding": decoding}, max_tokens=40)


def alone(backbone: Backbone, profile: Profile) -> str:
    engine = TorchEngine(backbone)
    engine.load("alone", profile)
    written = engine.complete([GenerationRequest(tuple(backbone.encode(PROMPT)), "alone", 40)])[0].text
    engine.close()
    return written


def test_a_release_is_served_under_its_decoding_policy(client: openai.OpenAI, session_backbone: Backbone) -> None:
    capped, free = write(client, "thrifty", max_tokens=40), write(client, "medicine", max_tokens=40)
    assert "Answer:" in capped and "Answer:" not in free
    assert capped == alone(session_backbone, Profile((random_lora(session_backbone, 3),), POLICY))


def test_a_policy_without_an_adapter_is_served_on_the_backbone(
    client: openai.OpenAI, base: str, session_backbone: Backbone
) -> None:
    capped, free = write(client, "frugal", max_tokens=40), write(client, base, max_tokens=40)
    assert "Answer:" in capped and "Answer:" not in free
    assert capped == alone(session_backbone, Profile(policy=POLICY))
    off = {"tip": False, "budget": {"max_trace_tokens": 4}}
    assert decoded(client, "frugal", off) == decoded(client, base, {"budget": {"max_trace_tokens": 4, "max_answer_tokens": 5}})
    with pytest.raises(openai.BadRequestError, match="budget.max_trace_tokens 13 where the release has 12"):
        decoded(client, "frugal", {"budget": {"max_trace_tokens": 13}})


def test_rows_under_policies_and_rows_of_the_backbone_write_what_they_write_alone(client: openai.OpenAI, base: str) -> None:
    models = [base, "frugal", "medicine", "thrifty"]
    apart = {model: write(client, model) for model in models}
    assert len(set(apart.values())) == len(models)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda model: (model, write(client, model)), models * 4))
    assert together == [(model, apart[model]) for model in models * 4]


def test_a_release_whose_policy_cannot_run_is_refused_by_the_name_of_its_part(client: openai.OpenAI, server: Live) -> None:
    refused = httpx.get(f"{server.openai_url}/models").json()["graftline"]["refused"]
    assert set(refused) == {"unable@1"} and "`tip`" in refused["unable@1"] and "'alternatively'" in refused["unable@1"]
    with pytest.raises(openai.APIStatusError, match="`tip`"):
        write(client, "unable")


def test_a_request_narrows_the_policy_and_its_stream_writes_the_same(client: openai.OpenAI) -> None:
    asked = {"budget": {"max_trace_tokens": 4}, "tip": False}
    shorter = decoded(client, "thrifty", asked)
    assert shorter == decoded(client, "medicine", {"budget": {"max_trace_tokens": 4, "max_answer_tokens": 5}})
    assert shorter.index("Answer:") < write(client, "thrifty", max_tokens=40).index("Answer:")
    stream = client.completions.create(model="thrifty", prompt=PROMPT, max_tokens=40, stream=True, extra_body={"decoding": asked})
    assert "".join(chunk.choices[0].text for chunk in stream) == shorter


@pytest.mark.parametrize(
    ("decoding", "rule"),
    [
        ({"budget": {"max_trace_tokens": 13}}, "budget.max_trace_tokens 13 where the release has 12"),
        ({"tip": {"alpha": 21}}, "tip.alpha 21 where the release has 20"),
        ({"tip": {"strength": 1}}, "decoding.tip.strength does not fit"),
        ({"branches": {"num_branches": 50}}, "decoding.branches.num_branches does not fit"),
        ({"branches": {}, "tip": {"beta": 3}}, "does not read beta"),
        ({"branches": {"max_answer_tokens": 40}, "budget": {"max_trace_tokens": 0}}, "a trace of one token or more"),
    ],
)
def test_more_than_the_policy_is_a_bad_request(client: openai.OpenAI, decoding: object, rule: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=rule) as caught:
            client.completions.create(
                model="thrifty", prompt=PROMPT, max_tokens=40, stream=stream, extra_body={"decoding": decoding}
            )
        assert (caught.value.param, caught.value.code) == ("decoding", "invalid_value")


def test_the_surest_of_several_branches_is_the_reply(client: openai.OpenAI) -> None:
    asked = {"branches": {"num_branches": 4, "max_trace_tokens": 6, "max_answer_tokens": 4}}
    reply = client.completions.create(model="medicine", prompt=PROMPT, max_tokens=40, extra_body={"decoding": asked})
    # This backbone ends no answer line by itself: its answer is cut, and says so.
    assert "Answer:" in reply.choices[0].text and reply.choices[0].finish_reason == "length"
    assert reply.usage is not None and reply.usage.completion_tokens > 4 * 6
    stream = client.completions.create(
        model="medicine", prompt=PROMPT, max_tokens=40, stream=True, extra_body={"decoding": asked}
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


STORY, QUESTION = "Anna puts it in. Ben goes.", "Where?"


def asked_about_a_mind(client: openai.OpenAI, model: str, content: str, **fields: object) -> Any:
    call: Callable[..., Any] = client.chat.completions.create
    return call(model=model, messages=[{"role": "user", "content": content}], max_tokens=12, **fields)


def tracing(**asked: object) -> dict[str, object]:
    return {"extra_body": {"decoding": {"tracing": asked or True}}}


def test_a_story_that_cannot_be_followed_is_answered_plainly_and_the_reply_says_so(client: openai.OpenAI) -> None:
    content = f"{STORY}\n\n{QUESTION}"
    plain, told = asked_about_a_mind(client, "storied", content), asked_about_a_mind(client, "storied", content, **tracing())
    assert told.choices[0].message.content == plain.choices[0].message.content
    assert told.graftline["tracing"]["traced"] is False
    assert told.graftline["tracing"]["reason"].endswith("; the plain question was answered")
    assert told.usage.completion_tokens > plain.usage.completion_tokens  # what tracing wrote is paid for
    assert "graftline" not in plain.model_dump()


def test_a_stream_says_of_its_tracing_where_it_ends(client: openai.OpenAI) -> None:
    content = f"{STORY} {QUESTION}"
    whole = asked_about_a_mind(client, "storied", content, **tracing(max_steps=1))
    chunks = list(asked_about_a_mind(client, "storied", content, stream=True, **tracing(max_steps=1)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].graftline == whole.graftline
    assert not any("graftline" in chunk.model_dump() for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("model", "content", "asked", "rule"),
    [
        ("frugal", f"{STORY} {QUESTION}", {}, "does not declare with `tracing`"),
        ("storied", f"{STORY} {QUESTION}", {"num_hypotheses": 3}, "tracing.num_hypotheses 3 where the release has 2"),
        ("storied", f"{STORY} {QUESTION}", {"depth": 3}, "decoding.tracing.depth does not fit"),
        ("storied", QUESTION, {}, "a story that ends with its question"),
    ],
)
def test_tracing_that_cannot_be_meant_is_a_bad_request(
    client: openai.OpenAI, model: str, content: str, asked: dict[str, object], rule: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=rule):
            asked_about_a_mind(client, model, content, stream=stream, **tracing(**asked))


def test_a_text_to_complete_has_no_story_to_trace(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="this request has none"):
        decoded(client, "storied", {"tracing": True})
