"""The tools that a chat may offer: functions with a schema of their arguments, as the chat template reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MAX_TOOLS = 128  # OpenAI's


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    """The one that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class Function(BaseModel):
    """Other keys than these are the template's to read."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function

    @property
    def read(self) -> dict[str, JsonValue]:
        """What a chat template reads: what the client sent, and a schema also where it sent none."""
        function: dict[str, JsonValue] = {"parameters": {"type": "object", "properties": {}}}
        function |= self.function.model_dump(exclude_none=True)
        return {"type": self.type, "function": function}
