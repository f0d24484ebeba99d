"""Replies as a release has them sent: of a policy with branches the winner, and of any other what the engine writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from adapters.backbone import Backbone
from engine.decoding.answer import said
from engine.decoding.branches import Branches
from engine.decoding.cot_decoding import Branch, CoTDecoding, Decoded
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
    branched = defaultdict[CoTDecoding, dict[int, Branches]](dict)  # by what is written: a vote costs no text of its own
    for place, policy in enumerate(policies):
        if policy is not None and policy.branches is not None:
            branched[policy.branches.within(backbone, policy, requests[place].max_new_tokens)][place] = policy.branches
    for decoding, votes in branched.items():
        asked = [replace(requests[place], policy=_bare(policies[place])) for place in votes]
        written = complete_branches(engine, backbone, decoding, asked)
        for (place, branches), (decoded, spent) in zip(votes.items(), written, strict=True):
            found[place] = _sent(requests[place], branches.winner(decoded, said), spent)
    return [found[place] for place in range(len(requests))]


def complete_branches(
    engine: Completes, backbone: Backbone, decoding: CoTDecoding, requests: Sequence[GenerationRequest]
) -> list[tuple[Decoded, list[Completion]]]:
    """The branches of each request, and all that was written for them; the rows of all requests are in one batch.

    The requests come without a budget in their policy.
    """
    rounds, spent = decoding.rounds(backbone, requests), [list[Completion]() for _ in requests]
    asked = next(rounds)
    while True:
        written = engine.complete(asked)
        rows = len(written) // len(requests)  # of each request in turn
        for place, one in enumerate(written):
            spent[place // rows].append(one)
        try:
            asked = rounds.send(written)
        except StopIteration as done:
            return list(zip(done.value, spent, strict=True))


def _policy(engine: Completes, request: GenerationRequest) -> DecodingPolicy | None:
    if request.policy is not None or request.profile is None:
        return request.policy
    return engine.profile(request.profile).policy


def _bare(policy: DecodingPolicy | None) -> DecodingPolicy | None:
    """A branch has limits of its own."""
    return policy and policy.model_copy(update={"budget": None, "branches": None})


def _sent(request: GenerationRequest, winner: Branch, spent: Sequence[Completion]) -> Completion:
    return Completion(
        winner.text,
        tuple(token_id for one in spent for token_id in one.token_ids),
        tuple(logprob for one in spent for logprob in one.logprobs),
        "length" if winner.is_cut else "stop",
        len(request.prompt_ids),
    )
