"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.answering import leased, new_reply, new_writing, released_on_failure
from service.dispatch import dispatch
from service.openai_shapes import ChatRequest, Choice, ObjectName
from service.parts import PartsHere
from service.prompts import chat_prompt
from service.request_log import tell
from service.streaming import EventStream, events, while_connected
from service.writing import collect

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(parts: PartsHere, request: Request, body: ChatRequest) -> Response:
    lease = await leased(parts, body.model)
    with released_on_failure(lease):
        prompt = chat_prompt(parts.backbone, body.turns, lease.served.prompt_overhead)
        told = await dispatch(parts, lease, [prompt])
        if told:
            prompt = chat_prompt(parts.backbone, body.turns, lease.served.prompt_overhead)
        writing = new_writing(parts, lease, [prompt], body, told)
    kind: ObjectName = "chat.completion.chunk" if body.stream else "chat.completion"
    reply = new_reply(parts, writing, "chatcmpl", request, kind)
    tell(request, writing.facts)
    if body.stream:
        stream = events(writing, reply, include_usage=body.include_usage)
        return await while_connected(request, EventStream.started(stream))
    written = await while_connected(request, collect(writing))
    choices = [
        Choice(index=index, message={"role": "assistant", "content": choice.text}, finish_reason=choice.finish_reason)
        for index, choice in enumerate(written)
    ]
    return JSONResponse(reply.wire(choices, writing.usage, told=writing.told()))
