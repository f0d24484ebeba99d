"""What a reply must be written like, in OpenAI's words (`response_format`) and in vLLM's (`structured_outputs`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue, model_validator

from engine.grammar import Grammar
from service.json_fields import JsonFields
from service.shortened import shortened
from service.unsupported import UnsupportedField

Schema = dict[str, JsonValue] | bool | str
Choices = Annotated[tuple[str, ...], Field(min_length=1)]
_REFUSED = ("guided_grammar", "guided_whitespace_pattern")


class NamedSchema(BaseModel):
    """`strict` or not, every reply is held to the schema."""

    name: str = ""
    schema_: Annotated[dict[str, JsonValue] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        schema = None if self.json_schema is None else self.json_schema.schema_
        return Grammar("json_object") if self.type == "json_object" or schema is None else _schema(schema)

    @model_validator(mode="after")
    def _schema_where_it_is_named(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError('a json_schema format holds its schema: {"name": ..., "schema": {...}}')
        return self


class StructuredOutputs(BaseModel):
    """vLLM's newer form; one of them."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Choices | None = None
    json_object: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: object) -> object:
        if isinstance(value, dict):
            for name in ("grammar", "structural_tag"):
                if value.get(name) is not None:
                    raise ValueError(f"{name} is not supported here. Give a json schema, a regex or a choice")
        return value

    @property
    def grammars(self) -> list[Grammar]:
        return _grammars(self.json_, self.regex, self.choice, Grammar("json_object") if self.json_object else None)


class GrammarFields(JsonFields):
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_grammars(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for param in _REFUSED:
            if value.get(param) is not None:
                rule = f"{param} is not supported here: a reply is held to a JSON schema, a regular expression or a choice"
                raise UnsupportedField(param, f"{rule}, but got {shortened(value[param])}.")
        return value

    @model_validator(mode="after")
    def _one_grammar(self) -> GrammarFields:
        if len(self._asked) > 1:
            raise ValueError("a reply is held to one grammar, but several are given: keep one of them")
        return self

    @property
    def grammar(self) -> Grammar | None:
        return next((grammar for _, grammar in self._asked), None)

    @property
    def grammar_param(self) -> str | None:
        """The field that the grammar stands in."""
        return next((param for param, _ in self._asked), None)

    @property
    def _asked(self) -> list[tuple[str, Grammar]]:
        by_param: dict[str, Sequence[Grammar | None]] = {
            "response_format": [] if self.response_format is None else [self.response_format.grammar],
            "structured_outputs": [] if self.structured_outputs is None else self.structured_outputs.grammars,
            "guided_json": _grammars(self.guided_json, None, None),
            "guided_regex": _grammars(None, self.guided_regex, None),
            "guided_choice": _grammars(None, None, self.guided_choice),
        }
        return [(param, grammar) for param, found in by_param.items() for grammar in found if grammar is not None]


def _grammars(
    schema: Schema | None, regex: str | None, choice: tuple[str, ...] | None, other: Grammar | None = None
) -> list[Grammar]:
    """ValueError where one is too long, or holds nothing."""
    found = [] if schema is None else [_schema(schema)]
    found += [] if regex is None else [Grammar("regex", (regex,))]
    found += [] if choice is None else [Grammar("choice", choice)]
    return found if other is None else [*found, other]


def _schema(schema: Schema) -> Grammar:
    return Grammar("json_schema", (schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False),))
