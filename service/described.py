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


class RecipeCard(_Shape):
    """A recipe of the server: `id` is what a sweep is started with, `toml` what it says."""

    id: str
    object: Literal["recipe"]
    toml: str


class ModelList(_Shape):
    object: Literal["list"]
    data: list[ModelCard]


class XRayStep(_Shape):
    """`information_gain`: by how much log_probability rose. `states_answer`: it, or a step before it, says the answer."""

    index: int
    text: str
    information_gain: float
    log_probability: float
    states_answer: bool


class XRayBreak(_Shape):
    """After `kept` of the chain's own steps: how likely the answer is, and what is answered instead."""

    kept: int
    log_probability: float
    answer: str
    same: bool


class XRay(_Shape):
    """Numbers are nats per answer token, at least `floor`. `before`: without a step; `after`: behind all of them."""

    id: str
    object: Literal["xray"]
    created: int
    model: str
    unit: str
    floor: float
    answer: str
    before: float
    after: float
    information_gain: float
    before_it_is_stated: float
    steps: list[XRayStep]
    breaks: dict[Literal["cut", "filled", "swapped"], list[XRayBreak]]
    other_states_answer: bool | None
    usage: Usage


class Recipes(_Shape):
    object: Literal["list"]
    data: list[RecipeCard]


class GateTable(_Shape):
    """The gate's report of a version: `rows` under `columns` as `graftline promote` prints them."""

    object: Literal["release.gate"]
    release: str
    verdict: Literal["pass", "fail", "inconclusive"]
    sentence: str
    columns: list[str]
    rows: list[list[str]]
    report: dict[str, JsonValue]


class Releases(_Shape):
    """Of every name what `graftline status` tells; `head` is the number of the ledger's last entry, 0 before the first."""

    object: Literal["list"]
    data: list[dict[str, JsonValue]]


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
