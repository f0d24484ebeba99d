"""What a request may change of its release's decoding policy."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from pydantic import JsonValue, ValidationError

from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.narrowing import Narrowing
from engine.decoding.tip import SwitchPenalty
from engine.errors import NotNarrower
from engine.profile import DecodingPolicy
from service.openai_shapes import Decoding

POLICY = DecodingPolicy(
    temperature=0.5,
    tip=SwitchPenalty(alpha=4, beta=100),
    budget=Budget(max_trace_tokens=64, min_trace_tokens=16, num_ignored_ends=2, ramp=5),
)


def narrowed(policy: DecodingPolicy = POLICY, **asked: JsonValue) -> DecodingPolicy:
    return Narrowing.model_validate(asked).of(policy)


def test_nothing_asked_leaves_the_policy() -> None:
    assert narrowed() == narrowed(tip={}, budget={}) == POLICY


@pytest.mark.parametrize("off", [False, {"alpha": 0}, {"beta": 0}])
def test_the_penalty_can_be_switched_off(off: JsonValue) -> None:
    assert narrowed(tip=off) == POLICY.model_copy(update={"tip": None})


def test_what_is_less_is_taken_and_the_rest_stays() -> None:
    found = narrowed(tip={"alpha": 2, "beta": 100}, budget={"max_trace_tokens": 32, "num_ignored_ends": 0})
    assert found.tip == SwitchPenalty(alpha=2, beta=100)
    assert found.budget == Budget(max_trace_tokens=32, min_trace_tokens=16, ramp=5)
    assert found.temperature == 0.5


def test_a_cap_below_the_minimum_lowers_it() -> None:
    budget = narrowed(budget={"max_trace_tokens": 8}).budget
    assert budget is not None and (budget.max_trace_tokens, budget.min_trace_tokens) == (8, 8)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("tip", "alpha", 5),
        ("tip", "beta", 101),
        ("budget", "max_trace_tokens", 65),
        ("budget", "min_trace_tokens", 17),
        ("budget", "num_ignored_ends", 3),
        ("budget", "max_answer_tokens", 33),
        ("budget", "ramp", 6),
    ],
)
def test_what_is_more_is_refused_by_its_name(part: str, field: str, value: int) -> None:
    with pytest.raises(NotNarrower, match=rf"{part}\.{field} {value} where the release has"):
        narrowed(**{part: {field: value}})


def test_a_cap_is_narrower_than_none() -> None:
    assert narrowed(DecodingPolicy(), budget={"max_trace_tokens": 500}).budget == Budget(max_trace_tokens=500)
    only_held = DecodingPolicy(budget=Budget(min_trace_tokens=9))
    capped = narrowed(only_held, budget={"max_trace_tokens": 500}).budget
    assert capped == Budget(max_trace_tokens=500, min_trace_tokens=9)
    with pytest.raises(NotNarrower, match="max_answer_tokens 33"):
        narrowed(only_held, budget={"max_answer_tokens": 33})


@pytest.mark.parametrize("asked", [{"min_trace_tokens": 1}, {"num_ignored_ends": 1}, {"max_trace_tokens": 9, "ramp": 1}])
def test_no_intervention_can_be_switched_on(asked: JsonValue) -> None:
    with pytest.raises(NotNarrower, match="where the release has 0"):
        narrowed(DecodingPolicy(), budget=asked)
    with pytest.raises(NotNarrower, match="the release has none"):
        narrowed(DecodingPolicy(), tip={"alpha": 1})
    assert narrowed(DecodingPolicy(), tip=False) == DecodingPolicy()


def test_a_field_that_the_schedule_does_not_read_is_refused() -> None:
    cyclic = DecodingPolicy(tip=SwitchPenalty(schedule="cyclic", amplitude=4))
    assert narrowed(cyclic, tip={"amplitude": 3}).tip == SwitchPenalty(schedule="cyclic", amplitude=3)
    with pytest.raises(NotNarrower, match="'cyclic', which does not read alpha, beta. Give amplitude"):
        narrowed(cyclic, tip={"alpha": 1, "beta": 1})
    with pytest.raises(NotNarrower, match="'const', which does not read beta"):
        narrowed(DecodingPolicy(tip=SwitchPenalty(schedule="const")), tip={"beta": 0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"tip": True},
        {"tip": {"words": ["wait"]}},
        {"tip": {"alpha": True}},
        {"tip": {"alpha": math.nan}},
        {"budget": {"max_trace_tokens": -1}},
        {"budget": {"max_trace_tokens": "5"}},
        {"budget": {"max_trace_tokens": 10**400}},
        {"tracing": {"max_steps": True}},
        {"n": 1},
    ],
)
def test_an_unknown_or_impossible_field_is_refused(wrong: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError):
        Narrowing.model_validate(wrong)


def test_the_examples_of_the_document_are_a_policy_and_a_request_that_narrows_it() -> None:
    text = (Path(__file__).parent.parent / "docs" / "decoding.md").read_text()
    policy, request = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S))
    narrowed = Decoding.model_validate(request)
    assert narrowed.of(DecodingPolicy.model_validate(policy)).tip == SwitchPenalty(alpha=1.5, beta=300)
    assert narrowed.branches is not None


def test_every_field_is_in_the_document() -> None:
    text = (Path(__file__).parent.parent / "docs" / "decoding.md").read_text()
    for spec in (DecodingPolicy, SwitchPenalty, Budget, Branches):
        assert all(f"`{name}`" in text or f'"{name}"' in text for name in spec.model_fields), spec
