"""What the endpoints answer, as the OpenAPI document describes it; requests are described by the models that read them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from service.openai_shapes import MODEL_HEADER, Usage


class _Shape(BaseModel):
    """A reply may hold more than this."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(_Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Shape):
    error: ErrorDetail


class CalledFunctionShape(_Shape):
    name: str
    arguments: str


class ToolCallShape(_Shape):
    id: str
    type: Literal["function"]
    function: CalledFunctionShape


class AssistantMessage(_Shape):
    """`reasoning_content`: of a backbone that thinks between markers. `content` is null beside calls alone."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallShape] | None = None


class ChatChoice(_Shape):
    index: int
    message: AssistantMessage
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class CompletionChoice(_Shape):
    index: int
    text: str
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length"]


class _Whole(_Shape):
    """`model` is what answered: NAME@VERSION, or the backbone."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Whole):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(_Whole):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelCard(_Shape):
    """`root`: what the name means now; `parent`: the backbone of an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None
    parent: str | None
    max_model_len: int


class ModelList(_Shape):
    object: Literal["list"]
    data: list[ModelCard]


EVENTS: dict[str, Any] = {
    "schema": {
        "type": "string",
        "description": "With `stream`: events `data: {chunk}`, then `data: [DONE]`; `: ping` between.",
    }
}


_HEADERS: dict[str, Any] = {
    MODEL_HEADER: {"schema": {"type": "string"}, "description": "`model`; what is not ASCII is percent-encoded"}
}


def answers(shape: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`."""
    found: dict[str, Any] = {"model": shape, "description": "The reply"}
    return {200: {**found, "content": {"text/event-stream": EVENTS}, "headers": _HEADERS} if streams else found}
