"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from engine.engine import Delta
from service.answering import leased, new_reply, new_writing, released_on_failure
from service.caller import caller_of
from service.described import ChatCompletion, answers
from service.dispatch import dispatch
from service.json_body import JsonRoute
from service.logprobs import ChatLog, vocabulary_of
from service.openai_shapes import ChatRequest, Choice, ObjectName
from service.parts import PartsHere
from service.prompts import read_chat
from service.reply_parts import ReplyParts, reasoning_tokens
from service.request_log import tell
from service.streaming import EventStream, Streaming, events, while_connected
from service.writing import collect

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", summary="A chat", responses=answers(ChatCompletion, streams=True))
async def chat(parts: PartsHere, request: Request, body: ChatRequest) -> Response:
    lease = await leased(parts, body.model, request, body.user)
    with released_on_failure(lease):
        prompt = await read_chat(parts.backbone, body, lease.served.prompt_overhead)
        told = await dispatch(parts, lease, [prompt.ids], caller_of(request))
        if told:
            prompt = await read_chat(parts.backbone, body, lease.served.prompt_overhead)
        logs: list[ChatLog] = []
        if body.num_top is not None:
            vocabulary = await vocabulary_of(parts.backbone)
            logs = [ChatLog(vocabulary, body.num_top) for _ in range(body.num_rows)]
        replies = [ReplyParts.of(parts.backbone, prompt, body) for _ in range(body.num_rows)]
        writing = new_writing(parts, request, lease, [prompt], body, told)
    writing.reasoning_tokens = lambda: reasoning_tokens(replies)
    kind: ObjectName = "chat.completion.chunk" if body.stream else "chat.completion"
    reply = new_reply(parts, writing, "chatcmpl", request, kind)
    tell(request, writing.facts)
    if body.stream:
        options = Streaming.of(body.stream_options, parts.settings)
        stream = events(writing, reply, options, replies, logs)
        return await while_connected(request, EventStream.started(stream, options.send_timeout_s, reply.headers))

    def hear(index: int, delta: Delta) -> None:
        replies[index].add(delta)
        if logs:
            logs[index].add(delta)

    written = await while_connected(request, collect(writing, hear))
    choices = [
        Choice(
            index=index,
            message=said.message(),
            logprobs=logs[index].whole if logs else None,
            finish_reason=said.finish_reason(choice.finish_reason),
        )
        for index, (choice, said) in enumerate(zip(written, replies, strict=True))
    ]
    return JSONResponse(reply.wire(choices, writing.usage, told=writing.told()), headers=reply.headers)
