"""Calls of tools in the text of a reply: the formats that models write, read while the text comes.

What looks like a call and is none stays content, and so does every reply without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import JsonValue

from engine.grammar import Grammar
from service.tools import Tool

PYTHON_TAG = "<|python_tag|>"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)  # of JSON, with its end


class Call(NamedTuple):
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class Read(NamedTuple):
    content: str
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class CallFormat:
    """`begins`: any of these opens a block; `end` closes it, and without one it lasts to the reply's end or the next beginning.

    `whole_reply`: a block is only what the reply begins with, its beginning with it. `read`: the calls of a block's text, none
    where it is not one. `around`: what a call that must be written stands between; `key`: what its arguments are called.
    """

    name: str
    begins: tuple[str, ...]
    end: str | None
    read: Callable[[str, Sequence[Tool]], tuple[Call, ...]]
    whole_reply: bool = False
    around: tuple[str, str] | None = None
    key: str = "arguments"

    def grammar(self, tools: Sequence[Tool]) -> Grammar:
        """A reply that is one call, of one of these tools, with arguments by its schema. ValueError where it is too long."""
        schema = json.dumps({"anyOf": [self._schema(place, tool) for place, tool in enumerate(tools)]}, ensure_ascii=False)
        if self.around is None:
            return Grammar("json_schema", (schema,))
        return Grammar("tagged_json", (self.around[0], schema, self.around[1]))

    def _schema(self, place: int, tool: Tool) -> JsonValue:
        parameters: JsonValue = tool.function.parameters or {"type": "object"}
        return {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                self.key: _moved(parameters, f"#/anyOf/{place}/properties/{self.key}"),
            },
            "required": ["name", self.key],
            "additionalProperties": False,
        }


def _moved(schema: JsonValue, place: str) -> JsonValue:
    """The schema as part of a larger one: what it says of its own parts is said of where they are now."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = place + reference[1:]
    return moved


def read_hermes(text: str, tools: Sequence[Tool]) -> tuple[Call, ...]:
    """`{"name": ..., "arguments": {...}}`, or Qwen3-Coder's `<function=NAME><parameter=KEY>VALUE</parameter></function>`."""
    return _xml_calls(text, tools) if text.lstrip().startswith("<function=") else _calls(_values(text), "arguments")


def read_mistral(text: str, tools: Sequence[Tool]) -> tuple[Call, ...]:
    """A list of objects with `name` and `arguments`, or `NAME[ARGS]{...}`, with or without `[CALL_ID]ID` between."""
    name, mark, arguments = text.partition("[ARGS]")
    if not mark:
        return _calls(_values(text), "arguments")
    return _calls([{"name": name.partition("[CALL_ID]")[0].strip(), "arguments": value} for value in _values(arguments)[:1]])


def read_llama(text: str, tools: Sequence[Tool]) -> tuple[Call, ...]:
    """`{"name": ..., "parameters": {...}}` with the name of an offered tool; several with a semicolon between them."""
    calls = _calls(_values(text.strip().removeprefix(PYTHON_TAG), between=";"), "parameters")
    offered = {tool.function.name for tool in tools}
    return calls if all(call.name in offered for call in calls) else ()


HERMES = CallFormat("hermes", ("<tool_call>",), "</tool_call>", read_hermes, around=("<tool_call>\n", "\n</tool_call>"))
MISTRAL = CallFormat("mistral", ("[TOOL_CALLS]",), None, read_mistral, around=("[TOOL_CALLS][", "]"))
LLAMA = CallFormat("llama", (PYTHON_TAG, "{"), None, read_llama, whole_reply=True, key="parameters")
# By what the chat template writes of earlier calls, the surest first.
FORMATS: Mapping[str, CallFormat] = {"<tool_call>": HERMES, "[TOOL_CALLS]": MISTRAL, '"parameters": ': LLAMA}


def format_of(template: str) -> CallFormat | None:
    """None where a template speaks of tools in no format that is known here."""
    return next((known for sign, known in FORMATS.items() if sign in template), None)


class CallStream:
    """`add` text as it comes to get what is certain by now; a block is given when it is whole."""

    def __init__(self, known: CallFormat, tools: Sequence[Tool]) -> None:
        self._format, self._tools = known, tuple(tools)
        self._held, self._begun = "", ""  # `_begun`: what opened the block that is being read
        self._in_block = self._has_content = self._has_call = False

    def add(self, text: str) -> Read:
        self._held += text
        return self._read(final=False)

    def finish(self) -> Read:
        """What was held back."""
        content, calls = self._read(final=True)
        held, self._held = self._held, ""
        return Read(content + (held if held.strip() or not self._has_call else ""), calls)

    def _read(self, *, final: bool) -> Read:
        content, calls = "", list[Call]()
        while True:
            if not self._in_block:
                content += self._plain()
                if not self._in_block:
                    break
            block = self._block(final=final)
            if block is None:
                break
            content, calls = content + block.content, [*calls, *block.calls]
        return Read(content, tuple(calls))

    def _plain(self) -> str:
        """The text up to the next block, without the space before it; no more than may be a beginning is held back."""
        text, begins = self._held, self._format.begins
        places = [(place, begin) for begin in begins if (place := text.find(begin)) >= 0]
        if self._format.whole_reply:
            start = len(text) - len(text.lstrip())
            begins = begins if not self._has_content and not self._has_call else ()
            places = [(place, begin) for place, begin in places if begins and place == start]
        if places:
            place, begun = min(places)
            self._in_block, self._begun = True, "" if self._format.whole_reply else begun
            self._held = text[place + len(self._begun) :]
            return self._content(text[:place].rstrip())
        sizes = range(max(map(len, begins), default=1) - 1, 0, -1)
        size = next((n for n in sizes if any(len(begin) > n and text.endswith(begin[:n]) for begin in begins)), 0)
        certain = text[: len(text) - size].rstrip()
        self._held = text[len(certain) :]
        return self._content(certain)

    def _block(self, *, final: bool) -> Read | None:
        """The block, read; None while it may go on."""
        end = self._format.end
        limits = (end,) if end is not None else () if self._format.whole_reply else self._format.begins
        places = [place for limit in limits if (place := _found(self._held, limit)) is not None]
        if final and not places:  # a string that has no end holds no end of a block either
            places = [place for limit in limits if (place := self._held.find(limit)) >= 0]
        place = min(places, default=None)
        if place is None and not final:
            return None
        text, rest = self._held[:place], "" if place is None else self._held[place:]
        closing = end if end is not None and rest else ""
        self._in_block, self._held = False, rest.removeprefix(closing)
        calls = self._format.read(text, self._tools)
        self._has_call |= bool(calls)
        return Read("" if calls else self._content(f"{self._begun}{text}{closing}"), calls)

    def _content(self, text: str) -> str:
        self._has_content |= bool(text.strip())
        return text


def _found(text: str, mark: str) -> int | None:
    """Where the mark stands first; in JSON, outside of its strings."""
    if not text.lstrip().startswith(("{", "[")):
        return place if (place := text.find(mark)) >= 0 else None
    start = 0
    while (place := text.find(mark, start)) >= 0:
        quote = text.find('"', start)
        if quote < 0 or quote > place:
            return place
        string = _STRING.match(text, quote)
        if string is None:
            return None
        start = string.end()
    return None


def _values(text: str, between: str = "") -> list[JsonValue]:
    """The JSON values that the text consists of; none where it holds anything else."""
    decoder, values, rest = json.JSONDecoder(), list[JsonValue](), text.strip()
    try:
        while rest:
            value, end = decoder.raw_decode(rest)
            values += value if isinstance(value, list) else [value]
            rest = rest[end:].lstrip().removeprefix(between).lstrip()
    except (ValueError, RecursionError):
        return []
    return values


def _calls(values: Sequence[JsonValue], key: str = "arguments") -> tuple[Call, ...]:
    """All of them calls, or none is one. Models write either word for the arguments."""
    found = []
    for value in values:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(name, str) or not name:
            return ()
        arguments = value.get(key, value.get("arguments", value.get("parameters", {})))
        if isinstance(arguments, str):
            arguments = next(iter(_values(arguments)), None)
        if not isinstance(arguments, dict):
            return ()
        found.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
    return tuple(found)


def _xml_calls(text: str, tools: Sequence[Tool]) -> tuple[Call, ...]:
    found = []
    for name, body in re.findall(r"<function=([^>\s]+)>(.*?)</function>", text, re.DOTALL):
        schema = next((tool.function.parameters or {} for tool in tools if tool.function.name == name), {})
        properties = schema.get("properties")
        kinds = properties if isinstance(properties, dict) else {}
        arguments = {
            key: _typed(value.removeprefix("\n").removesuffix("\n"), kinds.get(key))
            for key, value in re.findall(r"<parameter=([^>\s]+)>(.*?)</parameter>", body, re.DOTALL)
        }
        found.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
    return tuple(found)


def _typed(text: str, schema: JsonValue) -> JsonValue:
    """A text stays one where its schema says so or says nothing; else what it is in JSON."""
    if not isinstance(schema, dict) or schema.get("type", "string") == "string":
        return text
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
