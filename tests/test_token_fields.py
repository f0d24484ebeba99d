"""What a request says about its tokens: each field reaches the engine, or is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from engine.engine import GenerationRequest
from engine.grammar import Grammar
from service.openai_shapes import ChatRequest, CompletionRequest
from service.unsupported import UnsupportedField

SCHEMA: JsonValue = {"type": "object"}


def chat(**fields: JsonValue) -> ChatRequest:
    return ChatRequest.model_validate({"model": "law", "messages": [{"role": "user", "content": "?"}], **fields})


def completion(**fields: JsonValue) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "law", "prompt": "?", **fields})


def asked(place: int = 0, seed: int | None = None, **fields: JsonValue) -> GenerationRequest:
    return chat(**fields).of_choice(GenerationRequest((1, 2), max_new_tokens=8, seed=seed), place)


HONOURED: list[tuple[str, JsonValue, str, Any]] = [
    ("presence_penalty", 0.5, "presence_penalty", 0.5),
    ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
    ("repetition_penalty", 1.2, "repetition_penalty", 1.2),
    ("logit_bias", {"42": -100, "7": 3.5}, "logit_bias", ((42, -100.0), (7, 3.5))),
    ("top_k", 40, "top_k", 40),
    ("top_k", -1, "top_k", 0),
    ("min_p", 0.1, "min_p", 0.1),
    ("min_tokens", 3, "min_new_tokens", 3),
    ("ignore_eos", True, "ignore_end", True),
    ("stop_token_ids", [3, 4], "stop_ids", (3, 4)),
    ("include_stop_str_in_output", True, "includes_stop", True),
    ("response_format", {"type": "json_object"}, "grammar", Grammar("json_object")),
    ("response_format", {"type": "text"}, "grammar", None),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        "grammar",
        Grammar("json_schema", ('{"type": "object"}',)),
    ),
    ("guided_json", SCHEMA, "grammar", Grammar("json_schema", ('{"type": "object"}',))),
    ("guided_json", '{"type": "null"}', "grammar", Grammar("json_schema", ('{"type": "null"}',))),
    ("guided_regex", "a+", "grammar", Grammar("regex", ("a+",))),
    ("guided_choice", ["a", "b"], "grammar", Grammar("choice", ("a", "b"))),
    ("structured_outputs", {"json": SCHEMA}, "grammar", Grammar("json_schema", ('{"type": "object"}',))),
    ("structured_outputs", {"regex": "a+"}, "grammar", Grammar("regex", ("a+",))),
    ("structured_outputs", {"choice": ["a"]}, "grammar", Grammar("choice", ("a",))),
    ("structured_outputs", {"json_object": True}, "grammar", Grammar("json_object")),
]


@pytest.mark.parametrize(("param", "value", "field", "found"), HONOURED)
def test_a_field_reaches_the_engine(param: str, value: JsonValue, field: str, found: object) -> None:
    assert getattr(asked(**{param: value}), field) == found


@pytest.mark.parametrize("param", sorted({param for param, *_ in HONOURED} | {"n"}))
def test_null_is_as_good_as_left_out(param: str) -> None:
    assert asked(**{param: None}) == asked()


BAD: list[tuple[str, JsonValue]] = [
    ("n", 0),
    ("n", 129),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 1, "01": 1}),
    ("logit_bias", [1]),
    ("top_k", -2),
    ("min_p", 1.5),
    ("min_tokens", -1),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["1"]),
    ("response_format", {"type": "yaml"}),
    ("response_format", {"type": "json_schema"}),
    ("guided_choice", []),
    ("structured_outputs", {"grammar": "a"}),
    ("top_logprobs", 21),
]


@pytest.mark.parametrize(("param", "value"), BAD)
def test_a_value_out_of_range_is_refused_at_its_field(param: str, value: JsonValue) -> None:
    with pytest.raises(ValidationError) as caught:
        chat(**{param: value})
    assert caught.value.errors()[0]["loc"][0] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "a", "guided_choice": ["a"]},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"guided_regex": "a", "ignore_eos": True},
        {"guided_regex": ""},
        {"guided_regex": "a" * 70_000},
        {"top_logprobs": 2},
        {"max_tokens": 0},
        {
            "guided_regex": "a",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        },
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"truncate_prompt_tokens": 0},
        {"n": 3, "best_of": 2},
        {"best_of": 2, "stream": True},
        {"logprobs": 21},
        {"prompt": ["a"] * 9, "n": 128},
    ],
)
def test_a_completion_refuses_what_it_cannot_do(fields: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError):
        completion(**fields)


def test_every_choice_draws_with_a_seed_of_its_own_and_the_first_with_the_requests() -> None:
    assert [asked(place, seed=5).seed for place in range(3)] == [5, 6, 7]
    assert asked(2, seed=2**63 - 1).seed == -(2**63) + 1
    assert asked(1).seed is None


@pytest.mark.parametrize(
    ("param", "value"), [("n", 2), ("logprobs", True), ("top_k", 4), ("guided_regex", "a"), ("presence_penalty", 1)]
)
def test_branches_refuse_what_they_do_not_give(param: str, value: JsonValue) -> None:
    with pytest.raises(ValidationError) as caught:
        chat(decoding={"branches": {}}, **{param: value})
    cause = caught.value.errors()[0].get("ctx", {}).get("error")
    assert isinstance(cause, UnsupportedField) and cause.param == param
