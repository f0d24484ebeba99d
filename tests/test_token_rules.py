"""What a request says about its tokens is in range, or the request does not come to be."""

from __future__ import annotations

from typing import Any

import pytest

from engine.engine import GenerationRequest
from engine.grammar import MAX_CHOICES, MAX_GRAMMAR_CHARS, Grammar

NAN, INF = float("nan"), float("inf")


def asked(**fields: Any) -> GenerationRequest:
    return GenerationRequest((1, 2), max_new_tokens=8, **fields)


OUT_OF_RANGE = [
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("min_p", NAN),
    ("presence_penalty", 2.1),
    ("presence_penalty", NAN),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", INF),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 1e-40),
    ("repetition_penalty", 1e40),
    ("top_k", -1),
    ("logit_bias", ((3, 100.5),)),
    ("logit_bias", ((3, NAN),)),
    ("logit_bias", ((-1, 1.0),)),
    ("logit_bias", ((3, 1.0), (3, 2.0))),
    ("min_new_tokens", 9),
    ("min_new_tokens", -1),
    ("stop_ids", (-1,)),
    ("num_prompt_logprobs", -1),
    ("num_prompt_logprobs", 21),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        asked(**{field: value})


IN_RANGE = [
    ("min_p", 1.0),
    ("presence_penalty", -2.0),
    ("frequency_penalty", 2.0),
    ("repetition_penalty", 0.01),
    ("top_k", 10**9),
    ("logit_bias", ((3, -100.0), (4, 100.0))),
    ("min_new_tokens", 8),
    ("stop_ids", (0,)),
]


@pytest.mark.parametrize(("field", "value"), IN_RANGE)
def test_the_ends_of_a_range_belong_to_it(field: str, value: object) -> None:
    assert getattr(asked(**{field: value}), field) == value


def test_a_grammar_and_ignored_ends_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="ignore_end"):
        asked(grammar=Grammar("json_object"), ignore_end=True)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("json_object", ("{}",)),
        ("json_schema", ()),
        ("regex", ("a", "b")),
        ("regex", ("",)),
        ("choice", ()),
        ("choice", tuple(map(str, range(MAX_CHOICES + 1)))),
        ("regex", ("a" * (MAX_GRAMMAR_CHARS + 1),)),
    ],
)
def test_a_grammar_has_the_texts_of_its_kind(kind: Any, texts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="grammar"):
        Grammar(kind, texts)
