"""The BentoML service: OpenAI endpoints over one engine that runs every adapter in one batch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import bentoml
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from service import meters
from service.asgi import new_application, request_id
from service.bento_image import self_contained
from service.decoding import branches_of, generating, narrowed
from service.errors import ApiError
from service.lease import Lease
from service.openai_shapes import ChatRequest, Choice, CompletionRequest, ObjectName, Reply
from service.prompts import chat_prompt, completion_prompts
from service.settings import Settings
from service.startup import Parts, start
from service.streaming import EventStream, events, while_connected
from service.thoughts import traced
from service.writing import Writing, collect

app = new_application()
settings = Settings.from_environment()


# One worker, since the engine lives in it. BentoML's own limits are backstops: its 429 and 504 have no OpenAI shape.
@bentoml.service(
    name="graftline",
    workers=1,
    traffic={"timeout": settings.request_timeout_s + 60, "max_concurrency": 4096},
    http={"host": settings.host, "port": settings.port},
    image=self_contained(),
)
@bentoml.asgi_app(app, path="/")
class Graftline:
    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        self.parts: Parts = await asyncio.to_thread(start, settings)
        self.following = asyncio.create_task(self.parts.models.follow(settings.poll_s))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        self.following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.following

    async def __is_ready__(self) -> bool:
        return not self.following.done()

    @app.get("/v1/models")
    async def list_models(self) -> Response:
        models, readiness = self.parts.models, self.parts.models.readiness()
        detail = {"registry": readiness.registry or "ok", "refused": readiness.refused, "loaded": readiness.loaded}
        return JSONResponse({"object": "list", "data": [self._card(name) for name in models.ids()], "graftline": detail})

    @app.get("/v1/models/{model:path}")
    async def one_model(self, model: str) -> Response:
        lease = await self._lease(model)
        lease.release()
        return JSONResponse({**self._card(model), "root": lease.served.id})

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request, body: ChatRequest) -> Response:
        lease = await self._lease(body.model)
        with _released_on_failure(lease):
            prompt = chat_prompt(self.parts.backbone, body.turns, lease.served.prompt_overhead)
            writing = self._writing(lease, [prompt], body)
        reply = self._reply(writing, "chatcmpl", request, "chat.completion.chunk" if body.stream else "chat.completion")
        if body.stream:
            stream = events(writing, reply, include_usage=body.include_usage)
            return await while_connected(request, EventStream.started(stream))
        written = await while_connected(request, collect(writing))
        choices = [
            Choice(index=index, message={"role": "assistant", "content": choice.text}, finish_reason=choice.finish_reason)
            for index, choice in enumerate(written)
        ]
        return JSONResponse(reply.wire(choices, writing.usage, told=writing.told()))

    @app.post("/v1/completions")
    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        lease = await self._lease(body.model)
        with _released_on_failure(lease):
            prompts = completion_prompts(self.parts.backbone, body.prompts, lease.served.prompt_overhead)
            writing = self._writing(lease, prompts, body)
        reply = self._reply(writing, "cmpl", request, "text_completion")
        if body.stream:
            stream = events(writing, reply, include_usage=body.include_usage)
            return await while_connected(request, EventStream.started(stream))
        written = await while_connected(request, collect(writing))
        choices = [Choice(index=index, text=c.text, finish_reason=c.finish_reason) for index, c in enumerate(written)]
        return JSONResponse(reply.wire(choices, writing.usage))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def not_offered(self, request: Request, path: str) -> Response:
        offered = "/v1/chat/completions, /v1/completions and /v1/models"
        raise ApiError(404, f"{request.method} /v1/{path} is not offered here. There are {offered}.", "unknown_url")

    async def _lease(self, model: str) -> Lease:
        try:
            return await self.parts.models.lease(model)
        except ApiError:
            meters.count_refusal()
            raise

    def _card(self, name: str) -> dict[str, Any]:
        backbone = self.parts.models.backbone_id
        return {
            "id": name,
            "object": "model",
            "created": self.parts.started_at,
            "owned_by": "graftline",
            "root": self.parts.models.served_as(name),
            "parent": None if name == backbone else backbone,
            "max_model_len": self.parts.backbone.context_length,
        }

    def _writing(self, lease: Lease, prompts: list[tuple[int, ...]], body: ChatRequest | CompletionRequest) -> Writing:
        # What the release adds to the prompt takes its part of the context.
        engine, backbone, profile = self.parts.engine, self.parts.backbone, lease.served.profile
        context = backbone.context_length - lease.served.prompt_overhead
        policy = narrowed(DecodingPolicy() if profile is None else engine.profile(profile).policy, body.decoding)
        requests = tuple(
            GenerationRequest(
                prompt_ids=prompt,
                profile=profile,
                max_new_tokens=min(body.token_limit or context, context - len(prompt)),
                temperature=body.temperature,
                top_p=body.top_p,
                seed=body.seed,
                stop=body.stop,
                policy=policy,
            )
            for prompt in prompts
        )
        generate = generating(engine.generate, backbone, branches_of(policy, body), policy, requests)
        if policy.tracing is None:
            return Writing(generate, lease, requests, settings.request_timeout_s)
        turns = body.turns if isinstance(body, ChatRequest) else None
        tracer = traced(engine, generate, backbone, policy.tracing, turns)
        return Writing(tracer.generate, lease, requests, settings.request_timeout_s, told=lambda: tracer.told)

    def _reply(self, writing: Writing, prefix: str, request: Request, kind: ObjectName) -> Reply:
        fingerprint = f"fp_{self.parts.backbone.fingerprint[:12]}_{writing.lease.served.digest[:12]}"
        return Reply(
            id=f"{prefix}-{request_id(request)}",
            object=kind,
            created=int(time.time()),
            model=writing.model,
            system_fingerprint=fingerprint,
        )


@contextlib.contextmanager
def _released_on_failure(lease: Lease) -> Iterator[None]:
    """Until a `Writing` owns the lease, a refused prompt must give it back."""
    try:
        yield
    except ApiError:
        meters.count_refusal()
        lease.release()
        raise
