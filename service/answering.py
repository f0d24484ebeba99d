"""From a request's body to what writes its reply: the leased release, the engine's requests, the reply's head."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from fastapi import Request
from pydantic import JsonValue

from engine.engine import Completes, GenerationRequest
from engine.profile import DecodingPolicy
from service import meters
from service.asgi import request_id
from service.caller import caller_of
from service.canary import sticky_key
from service.deadline import Allowed, allowed
from service.decoding import branches_of, generating, narrowed
from service.errors import ApiError
from service.lease import Lease
from service.openai_shapes import ChatRequest, CompletionRequest, ObjectName, Reply
from service.parts import Parts
from service.prompts import ReadPrompt, template_of
from service.thinking import within_thought
from service.thoughts import traced
from service.writing import Generate, Writing

# The service's own answer to a request whose time is over comes first.
_ENGINES_GRACE_S = 1.0


async def leased(parts: Parts, model: str, request: Request | None = None, user: str | None = None) -> Lease:
    """What the name means now, for this request where a canary is under way; ApiError, counted, when it means nothing."""
    try:
        if request is None:
            return await parts.models.lease(model)
        return await parts.canaries.lease(model, sticky_key(caller_of(request).key, user, request_id(request)))
    except ApiError:
        meters.count_refusal()
        raise


@contextlib.contextmanager
def released_on_failure(lease: Lease) -> Iterator[None]:
    """Until a `Writing` owns the lease, a refused prompt must give it back."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, ApiError):
            meters.count_refusal()
        lease.release()
        raise


def new_writing(
    parts: Parts,
    request: Request,
    lease: Lease,
    prompts: Sequence[ReadPrompt],
    body: ChatRequest | CompletionRequest,
    told: Mapping[str, JsonValue] | None = None,
) -> Writing:
    """Admitted, or refused by an ApiError. Its end is counted, for its release and for a canary.

    `told`: what is known already of how the reply is made.
    """
    engine, time_allowed = parts.engine, allowed(request, body.timeout, parts.settings.request_timeout_s)
    ticket = parts.admission.ticket(caller_of(request), lambda asked: num_voters(engine, asked))
    writing = _writing(parts, lease, prompts, body, ticket.through(engine.generate), time_allowed, told)
    ticket.enter(writing.requests, writing.rows_each)
    writing.at_end.append(ticket.close)
    # What is mirrored is nobody's request: it waits behind no one and costs no quota.
    shadowed = Allowed(parts.settings.request_timeout_s)
    parts.canaries.follow(writing, lambda other: _writing(parts, other, prompts, body, engine.generate, shadowed))
    return writing


def _writing(
    parts: Parts,
    lease: Lease,
    prompts: Sequence[ReadPrompt],
    body: ChatRequest | CompletionRequest,
    rows: Generate,
    time_allowed: Allowed,
    told: Mapping[str, JsonValue] | None = None,
) -> Writing:
    # What the release adds to the prompt takes its part of the context.
    engine, backbone, profile = parts.engine, parts.backbone, lease.served.profile
    context = backbone.context_length - lease.served.prompt_overhead
    policy = narrowed(DecodingPolicy() if profile is None else engine.profile(profile).policy, body.decoding)
    rooms = [context - len(prompt.ids) - len(prompt.begun_ids) for prompt in prompts]
    if isinstance(body, ChatRequest):
        template = template_of(backbone, with_tools=body.offers_tools)
        policy = within_thought(policy, body, backbone, template, min(body.token_limit or context, *rooms))
    requests = tuple(
        GenerationRequest(
            prompt_ids=prompt.ids,
            begun_ids=prompt.begun_ids,
            profile=profile,
            max_new_tokens=min(body.token_limit or context, room),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
            policy=policy,
            cache_salt=body.cache_salt,
            deadline=time.monotonic() + time_allowed.left_s + _ENGINES_GRACE_S,
        )
        for prompt, room in zip(prompts, rooms, strict=True)
    )
    branches = branches_of(policy, body)
    generate = generating(rows, backbone, branches, policy, requests)
    rows_each = 1 if branches is None else branches.num_branches
    writing = Writing(generate, lease, requests, time_allowed, lambda: told or {}, rows_each=rows_each)
    if policy.tracing is not None:
        turns = body.plain_turns if isinstance(body, ChatRequest) else None
        tracer = traced(engine, generate, backbone, policy.tracing, turns)
        writing.generate, writing.told = tracer.generate, lambda: {**(told or {}), **tracer.told}
    return writing


def num_voters(engine: Completes, request: GenerationRequest) -> int:
    """Rows of the engine that one request takes: as many as its profile has sets of soft thoughts, unless it names one."""
    return 1 if request.profile is None or request.chain is not None else engine.profile(request.profile).num_chains


def new_reply(parts: Parts, writing: Writing, prefix: str, request: Request, kind: ObjectName) -> Reply:
    return Reply(
        id=f"{prefix}-{request_id(request)}",
        object=kind,
        created=int(time.time()),
        model=writing.model,
        system_fingerprint=f"fp_{parts.backbone.fingerprint[:12]}_{writing.lease.served.digest[:12]}",
    )
