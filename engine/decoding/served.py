"""Replies as a release has them sent: of a policy with branches the winner, and of any other what the engine writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapters.backbone import Backbone
from engine.decoding.answer import said
from engine.decoding.branches import Branches
from engine.engine import Completes, Completion, GenerationRequest
from engine.profile import DecodingPolicy


def complete_as_served(engine: Completes, backbone: Backbone, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """In order. The tokens of a winner are those of all its branches: what the reply cost.

    ValueError where a request leaves no room for a branch.
    """
    policies = [_policy(engine, request) for request in requests]
    found: dict[int, Completion] = {}
    plain = [place for place, policy in enumerate(policies) if policy is None or policy.branches is None]
    if plain:
        found |= zip(plain, engine.complete([requests[place] for place in plain]), strict=True)
    for place, policy in enumerate(policies):
        if policy is not None and policy.branches is not None:
            found[place] = _winner(engine, backbone, requests[place], policy, policy.branches)
    return [found[place] for place in range(len(requests))]


def _policy(engine: Completes, request: GenerationRequest) -> DecodingPolicy | None:
    if request.policy is not None or request.profile is None:
        return request.policy
    return engine.profile(request.profile).policy


def _winner(
    engine: Completes, backbone: Backbone, request: GenerationRequest, policy: DecodingPolicy, branches: Branches
) -> Completion:
    decoding = branches.within(backbone, policy, request.max_new_tokens)
    bare = policy.model_copy(update={"budget": None, "branches": None})  # a branch has limits of its own
    rounds = decoding.rounds(backbone, [replace(request, policy=bare)])
    asked, spent = next(rounds), list[Completion]()
    while True:
        written = engine.complete(asked)
        spent += written
        try:
            asked = rounds.send(written)
        except StopIteration as done:
            (decoded,) = done.value
            break
    winner = branches.winner(decoded, said)
    return Completion(
        winner.text,
        tuple(token_id for one in spent for token_id in one.token_ids),
        tuple(logprob for one in spent for logprob in one.logprobs),
        "length" if winner.is_cut else "stop",
        len(request.prompt_ids),
    )
