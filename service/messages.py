"""The messages of a chat: what each role may say, and what the chat template reads of it."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from service.shortened import shortened

Turn = dict[str, JsonValue]


class TextPart(BaseModel):
    type: Literal["text", "refusal"]
    text: str = ""

    @model_validator(mode="before")
    @classmethod
    def _refusals_have_a_field_of_their_own(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("type") == "refusal" and "text" not in value:
            return {**value, "text": value.get("refusal")}
        return value


class CalledFunction(BaseModel):
    name: str = Field(min_length=1)
    arguments: str = "{}"

    @field_validator("arguments")
    @classmethod
    def _a_json_object(cls, value: str) -> str:
        try:
            is_object = isinstance(json.loads(value or "{}"), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ValueError(f"arguments is the text of a JSON object, but got {shortened(value)}")
        return value


class ToolCall(BaseModel):
    """A call that an earlier reply made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def read(self) -> Turn:
        # Templates write the arguments as JSON themselves.
        arguments: JsonValue = json.loads(self.function.arguments or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[TextPart, ...] = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))

    @field_validator("content", mode="before")
    @classmethod
    def _null_is_empty(cls, value: object) -> object:
        return "" if value is None else value

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return () if value is None else value

    @field_validator("content", mode="wrap")
    @classmethod
    def _only_text(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            rule = "content is a text or a list of parts {'type': 'text', 'text': ...}; no pictures, sounds or files"
            raise ValueError(f"{rule}, but got {shortened(value)}") from error

    @model_validator(mode="after")
    def _calls_are_the_assistant_s(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls stand in a message of the assistant, but this one is of {self.role!r}")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def turn(self) -> Turn:
        """What a chat template reads. `developer` is OpenAI's newer word for `system`."""
        told: Turn = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        for field in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, field)) is not None:
                told[field] = value
        if self.tool_calls:
            told["tool_calls"] = [call.read for call in self.tool_calls]
        return told
