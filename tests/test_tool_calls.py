"""Calls of tools that models write, in the formats that are known, in pieces of any size."""

from __future__ import annotations

import json

import pytest

from adapters.backbone import Backbone
from engine.engine import GenerationRequest
from engine.torch_engine import TorchEngine
from service.tool_calls import FORMATS, HERMES, LLAMA, MISTRAL, Call, CallFormat, CallStream, format_of
from service.tools import Tool

WEATHER = Tool.model_validate(
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
)
ROME = Call("weather", '{"place": "Rome"}')
OSLO = Call("weather", '{"place": "Oslo", "days": 2}')
H_ROME = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
H_OSLO = '<tool_call>{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}</tool_call>'
XML = (
    "<tool_call>\n<function=weather>\n<parameter=place>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
J_ROME, J_OSLO = ('{"name": "weather", "%s": {"place": "Rome"}}', '{"name": "weather", "%s": {"place": "Oslo", "days": 2}}')

# Format, what is written, what is content, what is called.
REPLIES: dict[str, tuple[CallFormat, str, str, list[Call]]] = {
    "one": (HERMES, H_ROME, "", [ROME]),
    "after a text": (HERMES, f"Let me see.\n\n{H_ROME}", "Let me see.", [ROME]),
    "two": (HERMES, f"{H_ROME}\n{H_OSLO}\n", "", [ROME, OSLO]),
    "before a text": (HERMES, f"{H_ROME}\nDone.", "\nDone.", [ROME]),
    "as XML": (HERMES, XML, "", [OSLO]),
    "without its end": (HERMES, H_ROME.removesuffix("</tool_call>"), "", [ROME]),
    "an end in a string": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": {"place": "</tool_call>\\""}}</tool_call>.',
        ".",
        [Call("weather", '{"place": "</tool_call>\\""}')],
    ),
    "a string without an end": (
        HERMES,
        '<tool_call>{"name": "weather}</tool_call> ok',
        '<tool_call>{"name": "weather}</tool_call> ok',
        [],
    ),
    "no JSON": (HERMES, "<tool_call>weather in Rome</tool_call> ok", "<tool_call>weather in Rome</tool_call> ok", []),
    "cut": (HERMES, '<tool_call>\n{"name": "weather", "argu', '<tool_call>\n{"name": "weather", "argu', []),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    "none": (HERMES, " The sun shines: a < b. \n", " The sun shines: a < b. \n", []),
    "arguments as a text": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [Call("f", '{"a": 1}')],
    ),
    "a list": (MISTRAL, f"[TOOL_CALLS][{J_ROME % 'arguments'}, {J_OSLO % 'arguments'}]", "", [ROME, OSLO]),
    "named": (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"place": "Rome"}', "", [ROME]),
    "two named": (
        MISTRAL,
        'So:[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{"place": "Rome"}[TOOL_CALLS]weather[ARGS]{"place": "Oslo", "days": 2}',
        "So:",
        [ROME, OSLO],
    ),
    "an object": (LLAMA, J_ROME % "parameters", "", [ROME]),
    "two objects": (LLAMA, f"<|python_tag|>{J_ROME % 'parameters'}; {J_OSLO % 'parameters'}", "", [ROME, OSLO]),
    "an object that is no call": (LLAMA, '{"place": "Rome"}', '{"place": "Rome"}', []),
    "an object that calls what is not offered": (LLAMA, '{"name": "x", "parameters": {}}', '{"name": "x", "parameters": {}}', []),
    "an object within a text": (LLAMA, f"Say {J_ROME % 'parameters'}", f"Say {J_ROME % 'parameters'}", []),
}


@pytest.mark.parametrize("case", REPLIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_reply_is_content_and_calls(case: str, size: int) -> None:
    known, text, content, calls = REPLIES[case]
    stream = CallStream(known, [WEATHER])
    pieces = [*(stream.add(text[start : start + size]) for start in range(0, len(text), size)), stream.finish()]
    assert "".join(piece.content for piece in pieces) == content
    assert [call for piece in pieces for call in piece.calls] == calls


def test_content_is_not_held_back_longer_than_it_may_be_a_call() -> None:
    stream = CallStream(HERMES, [WEATHER])
    assert stream.add("Let me") == ("Let me", ())
    assert stream.add(" <tool") == ("", ())
    assert stream.add("box>") == (" <toolbox>", ())


def test_a_call_is_given_as_soon_as_it_is_whole() -> None:
    assert CallStream(HERMES, [WEATHER]).add(H_ROME) == ("", (ROME,))


@pytest.mark.parametrize("sign", FORMATS)
def test_a_format_is_known_by_what_the_template_writes(sign: str) -> None:
    assert format_of(f"{{% for tool in tools %}}{sign}{{% endfor %}}") is FORMATS[sign]


def test_a_template_in_another_format_has_none() -> None:
    assert format_of("{{ tools }}") is None


def test_a_nested_reply_is_content_and_no_crash() -> None:
    text = f"<tool_call>{'[' * 100_000}</tool_call>"
    assert CallStream(HERMES, []).add(text).content == text


def test_a_tool_without_a_schema_takes_no_arguments() -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "now", "strict": True}})
    read = tool.read["function"]
    assert isinstance(read, dict)
    assert read["parameters"] == {"type": "object", "properties": {}} and read["strict"] is True
    assert json.dumps(read)


@pytest.mark.parametrize("known", FORMATS.values(), ids=lambda known: known.name)
def test_a_reply_that_is_held_to_a_call_is_read_as_that_call(known: CallFormat, session_backbone: Backbone) -> None:
    parameters = {
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/City"}},
        "required": ["to"],
        "additionalProperties": False,
        "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
    }
    go = Tool.model_validate({"type": "function", "function": {"name": "go", "parameters": parameters}})
    engine = TorchEngine(session_backbone)
    asked = GenerationRequest(
        session_backbone.chat_ids("Go."), max_new_tokens=120, temperature=1.0, seed=3, grammar=known.grammar([WEATHER, go])
    )
    (written,) = engine.complete([asked])
    engine.close()
    stream = CallStream(known, [WEATHER, go])
    parts = [stream.add(written.text), stream.finish()]
    (call,) = [call for part in parts for call in part.calls]
    assert not "".join(part.content for part in parts).strip()
    arguments = json.loads(call.arguments)
    assert call.name in ("weather", "go") and (call.name == "weather" or arguments["to"] in ("Rome", "Oslo"))
