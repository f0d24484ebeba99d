"""What a chat's request says beside how tokens are drawn: its messages, its tools, its template and its chain of thought."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from service.json_fields import JsonFields
from service.messages import ChatMessage, Turn
from service.shortened import shortened
from service.tools import MAX_TOOLS, NamedTool, Tool
from service.unsupported import UnsupportedField

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
# OpenAI's and vLLM's other values, with what to do instead.
_REFUSED = {
    "chat_template": "The release's own template is used, as the gate read it. Leave it out.",
    "documents": "Put their text into the messages.",
}


class ChatFields(JsonFields):
    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    tools: Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, JsonValue] = {}
    add_generation_prompt: bool | None = None
    """None: as `continue_final_message` needs it."""
    continue_final_message: bool = False
    """The reply goes on with the last message, which is the assistant's."""
    reasoning_effort: Effort | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=10**9)] | None = None
    include_reasoning: bool = True

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for param, way in _REFUSED.items():
            if value.get(param):
                raise UnsupportedField(param, f"{param} is not supported here, but got {shortened(value[param])}. {way}")
        given = value.get("tool_choice")
        if isinstance(given, dict) and given.get("type") != "function":
            rule = "tool_choice is 'none', 'auto', 'required' or a function by name"
            raise UnsupportedField("tool_choice", f"{rule}, but got {shortened(given)}.")
        optional = cls.model_fields.keys() - {"messages"}
        return {key: one for key, one in value.items() if one is not None or key not in optional}

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_code(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if "chat_template" in value:
            raise ValueError("chat_template_kwargs are values that the release's template reads, but one of them is a template")
        return value

    @model_validator(mode="after")
    def _calls_what_is_offered(self) -> ChatFields:
        if self.tool_choice in ("none", "auto"):
            return self
        if not self.called:
            names = shortened([tool.function.name for tool in self.tools], 200)
            asked = self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.function.name
            rule = f"tool_choice asks for a call of a tool that is offered, but got {shortened(asked)}, and the tools are {names}"
            raise ValueError(f"{rule}: offer it, or choose another")
        return self

    @model_validator(mode="after")
    def _continues_what_is_there(self) -> ChatFields:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt are two ends of a prompt: give one of them")
        if self.messages[-1].role != "assistant" or not self.messages[-1].text:
            raise ValueError("continue_final_message needs a last message of the assistant with a text to go on from")
        return self

    @property
    def offers_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def called(self) -> tuple[Tool, ...]:
        """One of these must be called; none: the reply is the model's own."""
        if isinstance(self.tool_choice, NamedTool):
            return tuple(tool for tool in self.tools if tool.function.name == self.tool_choice.function.name)[:1]
        return self.tools if self.tool_choice == "required" else ()

    @property
    def turns(self) -> list[Turn]:
        return [message.turn for message in self.messages]

    @property
    def plain_turns(self) -> list[dict[str, str]]:
        """Roles and texts alone."""
        return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in self.turns]
