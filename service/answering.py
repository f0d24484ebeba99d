"""From a request's body to what writes its reply: the leased release, the engine's requests, the reply's head."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from fastapi import Request
from pydantic import JsonValue

from adapters.backbone import Backbone
from engine.engine import Completes, GenerationRequest
from engine.grammar import Grammar
from engine.profile import DecodingPolicy
from engine.token_rules import refuse_unknown_ids
from engine.voting import voters_of
from service import meters
from service.caller import Caller, Scope, caller_of
from service.canary import sticky_key
from service.chat_fields import ChatFields
from service.deadline import Allowed, allowed
from service.decoding import branches_of, generating, narrowed
from service.drain import drain_of
from service.errors import ApiError
from service.lease import Lease
from service.openai_shapes import ChatRequest, CompletionRequest, ObjectName, Reply
from service.parts import Parts
from service.prompts import ReadPrompt, template_of
from service.request_ids import request_id
from service.thinking import within_thought
from service.thoughts import traced
from service.tool_calls import format_of
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
    writing = admitted(
        parts, request, body.priority, lambda rows: _writing(parts, lease, prompts, body, rows, time_allowed, told)
    )
    # What is mirrored is nobody's request: it waits behind no one, goes before no one and costs no quota.
    shadowed, mirrored = Allowed(parts.settings.request_timeout_s), body.model_copy(update={"priority": None})
    parts.canaries.follow(writing, lambda other: _writing(parts, other, prompts, mirrored, engine.generate, shadowed))
    return writing


def admitted(parts: Parts, request: Request, priority: int | None, written: Callable[[Generate], Writing]) -> Writing:
    """What `written` makes, with every row waiting for its turn. ApiError where no room or quota is left."""
    engine = parts.engine
    refuse_priority(caller_of(request), priority)
    ticket = parts.admission.ticket(caller_of(request), lambda asked: num_voters(engine, asked))
    writing = written(ticket.through(engine.generate))
    ticket.enter(writing.requests, writing.rows_each)
    writing.at_end.append(ticket.close)
    if (drain := drain_of(request.app)) is not None:
        drain.will_cut(writing.cut)
        writing.at_end.append(lambda: drain.is_done(writing.cut))
    return writing


def refuse_priority(caller: Caller, priority: int | None) -> None:
    """ApiError 403 where a key would go before others that may not."""
    if priority is None or priority >= 0 or caller.may(Scope.ADMIN):
        return
    message = f"A priority below 0 goes before other keys' requests and needs a key with the scope 'admin', but got {priority}."
    raise ApiError(403, f"{message} Give 0 or more, or leave it out.", "missing_scope", "priority")


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
    limit = context if body.token_limit is None else body.token_limit
    with _values_in_range():
        call = call_grammar(backbone, body) if isinstance(body, ChatRequest) else None
        requests = tuple(
            body.of_choice(
                GenerationRequest(
                    prompt_ids=prompt.ids,
                    begun_ids=prompt.begun_ids,
                    profile=profile,
                    max_new_tokens=min(limit, room),
                    temperature=body.temperature,
                    top_p=body.top_p,
                    seed=body.seed,
                    stop=body.stop,
                    policy=policy,
                    cache_salt=body.cache_salt,
                    priority=body.priority or 0,
                    deadline=time.monotonic() + time_allowed.left_s + _ENGINES_GRACE_S,
                    top_logprobs=body.num_top or 0,
                    num_prompt_logprobs=_of_the_prompt(body),
                    grammar=call,
                ),
                place,
            )
            for prompt, room in zip(prompts, rooms, strict=True)
            for place in range(body.num_rows)
        )
        refuse_unknown_ids(requests[0], backbone.embeddings.num_embeddings)
    branches = branches_of(policy, body)
    generate = generating(rows, backbone, branches, policy, requests)
    rows_each = 1 if branches is None else branches.num_branches
    writing = Writing(generate, lease, requests, time_allowed, lambda: told or {}, rows_each=rows_each)
    writing.rows_per_prompt, writing.params = body.num_rows, _params(body)
    if policy.tracing is not None:
        if (param := body.not_of_one_row) is not None:
            message = f"A traced reply is written in several rounds, which {param} does not reach. Leave one of the two out."
            raise ApiError(400, message, "invalid_value", param)
        turns = body.plain_turns if isinstance(body, ChatRequest) else None
        tracer = traced(engine, generate, backbone, policy.tracing, turns)
        writing.generate, writing.told = tracer.generate, lambda: {**(told or {}), **tracer.told}
    return writing


def call_grammar(backbone: Backbone, body: ChatFields) -> Grammar | None:
    """What holds the reply to a call, in the form that the backbone's template speaks of; None where none is asked for."""
    known = format_of(template_of(backbone, with_tools=True)) if body.called else None
    return None if known is None else known.grammar(body.called)


def num_voters(engine: Completes, request: GenerationRequest) -> int:
    """Rows of the engine that one request takes: as many as its profile has sets of soft thoughts, where those vote."""
    return 1 if request.profile is None else len(voters_of(request, engine.profile(request.profile).num_chains))


def _of_the_prompt(body: ChatRequest | CompletionRequest) -> int | None:
    """How many likely tokens are listed at each place of the prompt; None: it is not read back."""
    if isinstance(body, ChatRequest) or not body.echo:
        return None
    return body.logprobs if body.logprobs is not None else 0 if body.max_tokens == 0 else None


@contextlib.contextmanager
def _values_in_range() -> Iterator[None]:
    """What the engine refuses of a request's values is the client's to correct."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        param = next((param for name, param in _NAMES.items() if name in message), None)
        for name, known in _NAMES.items():
            message = message.replace(name, known)
        raise ApiError(400, message, "invalid_value", param) from error


# The engine's fields as they are called here.
_NAMES = {"logit_bias": "logit_bias", "stop_ids": "stop_token_ids", "min_new_tokens": "min_tokens"}


def _params(body: ChatRequest | CompletionRequest) -> dict[str, str]:
    """The request's fields by the engine's: what an error of the engine is about."""
    is_chat = isinstance(body, ChatRequest)
    changing = (
        ("decoding",) if body.decoding.model_fields_set else ("thinking_token_budget", "reasoning_effort") if is_chat else ()
    )
    found = {
        "prompt_ids": "messages" if is_chat else "prompt",
        "grammar": "tools" if isinstance(body, ChatRequest) and body.called else body.grammar_param,
        "num_prompt_logprobs": "echo",
        "policy": next((param for param in changing if getattr(body, param) is not None), None),
    }
    return {field: param for field, param in found.items() if param is not None}


def new_reply(parts: Parts, writing: Writing, prefix: str, request: Request, kind: ObjectName) -> Reply:
    return Reply(
        id=f"{prefix}-{request_id(request)}",
        object=kind,
        created=int(time.time()),
        model=writing.model,
        system_fingerprint=f"fp_{parts.backbone.fingerprint[:12]}_{writing.lease.served.digest[:12]}",
    )
