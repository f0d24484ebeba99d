"""`/v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.answering import leased, new_reply, new_writing, released_on_failure
from service.described import TextCompletion, answers
from service.dispatch import dispatch
from service.json_body import JsonRoute
from service.openai_shapes import Choice, CompletionRequest
from service.parts import PartsHere
from service.prompts import ReadPrompt, read_prompts
from service.request_log import tell
from service.streaming import EventStream, Streaming, events, while_connected
from service.writing import collect

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", summary="Texts that go on", responses=answers(TextCompletion, streams=True))
async def complete(parts: PartsHere, request: Request, body: CompletionRequest) -> Response:
    lease = await leased(parts, body.model, request, body.user)
    with released_on_failure(lease):
        prompts = await read_prompts(parts.backbone, body.prompts, lease.served.prompt_overhead)
        told = await dispatch(parts, lease, prompts)
        if told:
            prompts = await read_prompts(parts.backbone, body.prompts, lease.served.prompt_overhead)
        writing = new_writing(parts, request, lease, [ReadPrompt(ids) for ids in prompts], body, told)
    reply = new_reply(parts, writing, "cmpl", request, "text_completion")
    tell(request, writing.facts)
    if body.stream:
        options = Streaming.of(body.stream_options, parts.settings)
        return await while_connected(request, EventStream.started(events(writing, reply, options), options.send_timeout_s))
    written = await while_connected(request, collect(writing))
    choices = [Choice(index=index, text=c.text, finish_reason=c.finish_reason) for index, c in enumerate(written)]
    return JSONResponse(reply.wire(choices, writing.usage, told=writing.told()))
