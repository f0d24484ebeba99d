"""Chats with tools: what the template is told of them, and how a call comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from live_service import Live, live, small
from saying_engine import SayingEngine
from thinking_backbones import thinking_directory

from engine.errors import CannotRun
from engine.torch_engine import TorchEngine

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}
HELLO: list[Any] = [{"role": "user", "content": "How warm is it in Rome?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
MODEL = "thinker"


@pytest.fixture(scope="module")
def server(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("tools")
    with live(small(thinking_directory(backbone_directory, folder / MODEL), folder / "home")) as server:
        server.app.state.parts = replace(server.parts, engine=SayingEngine(server.parts.backbone))
        yield server


@pytest.fixture
def engine(server: Live) -> SayingEngine:
    engine = server.parts.engine
    assert isinstance(engine, SayingEngine)
    engine.text = f"<think>\nI should look.\n</think>\n\nLet me see.\n{CALL}"
    return engine


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        yield client


def prompt_of(engine: SayingEngine) -> str:
    return str(engine.backbone.tokenizer.decode(engine.asked[-1].prompt_ids))


def test_a_call_comes_back_beside_the_content(client: openai.OpenAI, engine: SayingEngine) -> None:
    choice = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL]).choices[0]  # type: ignore[list-item]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Rome"})


def test_a_reply_that_is_only_a_call_has_no_content(client: openai.OpenAI, engine: SayingEngine) -> None:
    engine.text = CALL
    choice = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL]).choices[0]  # type: ignore[list-item]
    assert choice.message.content is None and choice.message.tool_calls


def test_a_call_is_streamed(client: openai.OpenAI, engine: SayingEngine) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], stream=True))  # type: ignore[list-item]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert call.index == 0 and call.id and call.function is not None
    assert json.loads(call.function.arguments or "") == {"place": "Rome"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_several_calls_have_ids_of_their_own(client: openai.OpenAI, engine: SayingEngine) -> None:
    engine.text = CALL * 2
    message = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL]).choices[0].message  # type: ignore[list-item]
    assert message.tool_calls is not None and len({call.id for call in message.tool_calls}) == 2
    one = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[TOOL],  # type: ignore[list-item]
        parallel_tool_calls=False,
    ).choices[0]
    assert one.message.tool_calls is not None and len(one.message.tool_calls) == 1


def test_the_template_reads_the_tools(client: openai.OpenAI, engine: SayingEngine) -> None:
    client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL])  # type: ignore[list-item]
    assert '"name": "weather"' in prompt_of(engine)


def test_with_tool_choice_none_no_tools_are_offered(client: openai.OpenAI, engine: SayingEngine) -> None:
    engine.text = CALL
    choice = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], tool_choice="none").choices[0]  # type: ignore[list-item]
    assert choice.message.tool_calls is None and choice.message.content == CALL and choice.finish_reason == "stop"
    assert "weather" not in prompt_of(engine)


def test_a_reply_without_a_call_is_content(client: openai.OpenAI, engine: SayingEngine) -> None:
    engine.text = "It is warm."
    choice = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL]).choices[0]  # type: ignore[list-item]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It is warm.", None, "stop")


def test_a_call_that_is_cut_is_content_cut_by_length(client: openai.OpenAI, engine: SayingEngine) -> None:
    engine.text = CALL
    choice = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], max_tokens=9).choices[0]  # type: ignore[list-item]
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert choice.message.content is not None and CALL.startswith(choice.message.content)


def test_earlier_calls_and_their_outcomes_are_read_by_the_template(client: openai.OpenAI, engine: SayingEngine) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Rome"}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "a", "content": "21 degrees"})
    client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])  # type: ignore[list-item]
    assert 'weather {"place": "Rome"}' in prompt_of(engine) and "<|im_start|>tool\n21 degrees" in prompt_of(engine)


# Short: every character of it is a token of the tiny backbone, whose context has 512.
TO: dict[str, Any] = {
    "type": "object",
    "properties": {"to": {"$ref": "#/$defs/P"}},
    "required": ["to"],
    "additionalProperties": False,
    "$defs": {"P": {"enum": ["Rome", "Oslo"]}},
}
GO: dict[str, Any] = {"type": "function", "function": {"name": "go", "parameters": TO}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "see"}}, GO]
NAMED: Any = {"type": "function", "function": {"name": "go"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be_made_is_made_with_arguments_by_its_schema(
    client: openai.OpenAI, server: Live, engine: SayingEngine, choice: Any, stream: bool
) -> None:
    """By the engine itself, whose random backbone writes no call of its own accord."""
    parts = server.parts
    tools = TOOLS if choice == NAMED else TOOLS[1:]
    asked = {"model": MODEL, "messages": HELLO, "tools": tools, "max_tokens": 200, "seed": 1, "temperature": 1.0}
    real = TorchEngine(parts.backbone)
    server.app.state.parts = replace(parts, engine=real)
    try:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        made: Any = client.chat.completions.create(**asked, tool_choice=choice, stream=stream, extra_body=extra)  # type: ignore[call-overload]
        if stream:
            chunks = list(made)
            (call,) = (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or [])
            content, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
        else:
            (call,) = made.choices[0].message.tool_calls
            content, reason = made.choices[0].message.content, made.choices[0].finish_reason
        assert (call.function.name, not content, reason) == ("go", True, "tool_calls")
        assert json.loads(call.function.arguments)["to"] in ("Rome", "Oslo")
        free = client.chat.completions.create(**asked, tool_choice="auto", extra_body=extra)  # type: ignore[call-overload]
        assert free.choices[0].message.tool_calls is None  # what makes the call is the choice
    finally:
        server.app.state.parts = parts
        real.close()


def test_a_tool_whose_schema_cannot_be_followed_is_refused_as_a_tool(
    client: openai.OpenAI, server: Live, engine: SayingEngine
) -> None:
    tool = {"type": "function", "function": {"name": "go", "parameters": {"properties": {"to": {"type": "objekt"}}}}}
    parts, real = server.parts, TorchEngine(server.parts.backbone)
    server.app.state.parts = replace(parts, engine=real)
    try:
        with pytest.raises(openai.BadRequestError, match="objekt") as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO, tools=[tool], tool_choice="required")  # type: ignore[list-item]
    finally:
        server.app.state.parts = parts
        real.close()
    assert (caught.value.param, caught.value.code) == ("tools", "invalid_value")


@pytest.mark.parametrize(
    ("field", "asked", "param"),
    [
        ("policy", {"extra_body": {"decoding": {"branches": False}}}, "decoding"),
        ("policy", {"extra_body": {"thinking_token_budget": 5}}, "thinking_token_budget"),
        ("policy", {}, None),  # the release's own
        ("grammar", {"response_format": {"type": "json_object"}}, "response_format"),
        ("grammar", {"extra_body": {"guided_choice": ["a"]}}, "guided_choice"),
        ("grammar", {"tools": TOOLS, "tool_choice": "required"}, "tools"),
        (None, {}, None),
    ],
)
def test_what_an_engine_cannot_run_is_refused_by_the_field_that_the_client_sent(
    client: openai.OpenAI, engine: SayingEngine, field: str | None, asked: dict[str, Any], param: str | None
) -> None:
    engine.refuses = CannotRun("This engine cannot.", field)
    try:
        with pytest.raises(openai.BadRequestError, match="cannot") as caught:
            client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **asked})
    finally:
        engine.refuses = None
    assert caught.value.param == param


@pytest.mark.parametrize(("tools", "choice"), [([], "required"), ([TOOL], NAMED)])
def test_a_call_of_what_is_not_offered_cannot_be_asked_for(
    client: openai.OpenAI, engine: SayingEngine, tools: list[Any], choice: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match="a tool that is offered"):
        client.chat.completions.create(model=MODEL, messages=HELLO, tools=tools, tool_choice=choice)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL], "tool_choice": "required", "extra_body": {"decoding": {"branches": {}}}}, "tool_choice"),
        ({"tools": [TOOL], "extra_body": {"decoding": {"tracing": True}}}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "weather"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"messages": [*HELLO, {"role": "user", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    client: openai.OpenAI, engine: SayingEngine, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **fields})
    assert caught.value.param == param


def test_tools_are_refused_where_the_template_knows_none(
    backbone_directory: Path, client: openai.OpenAI, engine: SayingEngine
) -> None:
    tokenizer = engine.backbone.tokenizer
    template = tokenizer.chat_template
    try:
        for other in ("{{ messages[0].content }}", "{{ messages[0].content }}{{ tools }}"):
            tokenizer.chat_template = other
            with pytest.raises(openai.BadRequestError, match="tools need a chat template that knows them") as caught:
                client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL])  # type: ignore[list-item]
            assert caught.value.param == "tools"
    finally:
        tokenizer.chat_template = template
