"""From a request's body to what writes its reply: the leased release, the engine's requests, the reply's head."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from fastapi import Request
from pydantic import JsonValue

from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from service import meters
from service.asgi import request_id
from service.caller import caller_of
from service.canary import sticky_key
from service.decoding import branches_of, generating, narrowed
from service.errors import ApiError
from service.lease import Lease
from service.openai_shapes import ChatRequest, CompletionRequest, ObjectName, Reply
from service.parts import Parts
from service.prompts import ReadPrompt, template_of
from service.thinking import within_thought
from service.thoughts import traced
from service.writing import Writing


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
    lease: Lease,
    prompts: Sequence[ReadPrompt],
    body: ChatRequest | CompletionRequest,
    told: Mapping[str, JsonValue] | None = None,
) -> Writing:
    """`told`: what is known already of how the reply is made. Its end is counted, for its release and for a canary."""
    writing = _writing(parts, lease, prompts, body, told)
    parts.canaries.follow(writing, lambda other: _writing(parts, other, prompts, body))
    return writing


def _writing(
    parts: Parts,
    lease: Lease,
    prompts: Sequence[ReadPrompt],
    body: ChatRequest | CompletionRequest,
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
        )
        for prompt, room in zip(prompts, rooms, strict=True)
    )
    generate = generating(engine.generate, backbone, branches_of(policy, body), policy, requests)
    if policy.tracing is None:
        return Writing(generate, lease, requests, parts.settings.request_timeout_s, told=lambda: told or {})
    turns = body.plain_turns if isinstance(body, ChatRequest) else None
    tracer = traced(engine, generate, backbone, policy.tracing, turns)
    timeout_s = parts.settings.request_timeout_s
    return Writing(tracer.generate, lease, requests, timeout_s, told=lambda: {**(told or {}), **tracer.told})


def new_reply(parts: Parts, writing: Writing, prefix: str, request: Request, kind: ObjectName) -> Reply:
    return Reply(
        id=f"{prefix}-{request_id(request)}",
        object=kind,
        created=int(time.time()),
        model=writing.model,
        system_fingerprint=f"fp_{parts.backbone.fingerprint[:12]}_{writing.lease.served.digest[:12]}",
    )
