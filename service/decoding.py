"""A request's `decoding` field: what it makes of the release's policy, or the answer why it may not."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.backbone import Backbone
from engine.decoding.branches import Branches
from engine.decoding.narrowing import Narrowing
from engine.engine import GenerationRequest
from engine.errors import NotNarrower
from engine.profile import DecodingPolicy
from service.branching import Branching
from service.errors import ApiError, from_engine
from service.openai_shapes import ChatRequest, CompletionRequest
from service.writing import Generate


def narrowed(policy: DecodingPolicy, asked: Narrowing) -> DecodingPolicy:
    try:
        return asked.of(policy)
    except NotNarrower as error:
        raise from_engine(error, "") from error


def branches_of(policy: DecodingPolicy, body: ChatRequest | CompletionRequest) -> Branches | None:
    """Those of the request, else of the release; a request that asks for what its release's branches do not give is refused."""
    found = body.decoding.branches_of(policy)
    if found is not None and (param := body.not_beside_branches) is not None:
        rule = f"The release answers with the winner of {found.num_branches} branches, which {param} does not reach"
        ways = 'Leave it out, or ask for one reply: "decoding": {"branches": false}.'
        raise ApiError(400, f"{rule}. {ways}", "invalid_value", param)
    return found


def generating(
    rows: Generate,
    backbone: Backbone,
    branches: Branches | None,
    policy: DecodingPolicy,
    requests: Sequence[GenerationRequest],
) -> Generate:
    """The engine's rows themselves, or their branches."""
    if branches is None:
        return rows
    try:
        return Branching.of(rows, backbone, branches, policy, min(request.max_new_tokens for request in requests)).generate
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "decoding") from error
