"""How long a request lets a backbone think between its markers: values for the chat template, or a budget of the chain."""

from __future__ import annotations

import re

from pydantic import JsonValue

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.narrowing import BudgetNarrowing
from engine.errors import NotNarrower
from engine.profile import DecodingPolicy
from service.chat_fields import ChatFields, Effort
from service.errors import ApiError

# Of the tokens that a reply may have, where the template reads no effort of its own; OpenRouter's shares.
SHARES: dict[Effort, float] = {"none": 0.0, "minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95}


def reads(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def template_values(body: ChatFields, template: str) -> dict[str, JsonValue]:
    """What the template is given beside the messages; the request's own values go first."""
    values: dict[str, JsonValue] = {}
    if body.reasoning_effort == "none" and reads(template, "enable_thinking"):
        values["enable_thinking"] = False
    elif body.reasoning_effort is not None and reads(template, "reasoning_effort"):
        values["reasoning_effort"] = body.reasoning_effort
    return values | body.chat_template_kwargs


def within_thought(policy: DecodingPolicy, body: ChatFields, backbone: Backbone, template: str, room: int) -> DecodingPolicy:
    """The policy with the request's limit on the chain. `room`: the most tokens that the reply may have."""
    asked = [param for param in ("thinking_token_budget", "reasoning_effort") if getattr(body, param) not in (None, "none")]
    if backbone.markers is None and asked:
        rule = f"{asked[0]} limits a chain of thought between markers, and the backbone {backbone.name!r} writes none"
        raise ApiError(400, f"{rule}. Leave it out, or limit its trace by decoding.budget.", "unsupported_parameter", asked[0])
    if backbone.markers is None:
        return policy
    if body.thinking_token_budget is not None:
        return _limited(policy, body.thinking_token_budget, room)
    effort = body.reasoning_effort
    if effort is None or reads(template, "reasoning_effort") or (effort == "none" and reads(template, "enable_thinking")):
        return policy
    cap = int(SHARES[effort] * room)
    given = None if policy.budget is None else policy.budget.max_trace_tokens
    return _limited(policy, cap if given is None else min(cap, given), room)


def _limited(policy: DecodingPolicy, cap: int, room: int) -> DecodingPolicy:
    budget = Budget(max_trace_tokens=cap, max_answer_tokens=max(room, 1), answer_is_line=False, reserves_answer=False)
    if policy.budget is not None:
        try:
            narrowed = BudgetNarrowing(max_trace_tokens=cap).of(policy.budget)
        except NotNarrower as error:
            raise ApiError(400, str(error), "invalid_value", "thinking_token_budget") from error
        assert narrowed is not None
        budget = narrowed
    return policy.model_copy(update={"budget": budget})
