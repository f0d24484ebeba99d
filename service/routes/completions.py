"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.answering import leased, new_reply, new_writing, released_on_failure
from service.caller import caller_of
from service.described import TextCompletion, answers
from service.dispatch import dispatch
from service.json_body import JsonRoute
from service.logprobs import CompletionLog, echoed_text, vocabulary_of
from service.openai_shapes import Choice, CompletionRequest
from service.parts import Parts, PartsHere
from service.prompts import ReadPrompt, read_prompts
from service.request_log import tell
from service.streaming import EventStream, Streaming, events, while_connected
from service.writing import Written, collect

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", summary="Texts that go on", responses=answers(TextCompletion, streams=True))
async def complete(parts: PartsHere, request: Request, body: CompletionRequest) -> Response:
    lease = await leased(parts, body.model, request, body.user)
    with released_on_failure(lease):
        prompts = await read_prompts(parts.backbone, body, lease.served.prompt_overhead)
        told = await dispatch(parts, lease, prompts, caller_of(request))
        if told:
            prompts = await read_prompts(parts.backbone, body, lease.served.prompt_overhead)
        echoes, logs = await _told_of(parts, prompts, body)
        writing = new_writing(parts, request, lease, [ReadPrompt(ids) for ids in prompts], body, told)
    reply = new_reply(parts, writing, "cmpl", request, "text_completion")
    tell(request, writing.facts)
    if body.stream:
        options = Streaming.of(body.stream_options, parts.settings)
        stream = events(writing, reply, options, logs=logs, echoes=echoes)
        return await while_connected(request, EventStream.started(stream, options.send_timeout_s, reply.headers))
    written = await while_connected(request, collect(writing, hear=lambda index, delta: logs and logs[index].add(delta)))
    choices = [
        Choice(
            index=index,
            text=(echoes[place] if echoes else "") + written[place].text,
            logprobs=logs[place].whole if logs else None,
            finish_reason=written[place].finish_reason,
        )
        for index, place in enumerate(_kept(written, body))
    ]
    return JSONResponse(reply.wire(choices, writing.usage, told=writing.told()), headers=reply.headers)


async def _told_of(
    parts: Parts, prompts: Sequence[tuple[int, ...]], body: CompletionRequest
) -> tuple[Sequence[str], Sequence[CompletionLog]]:
    """For every row its prompt's text, where that is echoed, and its log; none where they are not asked for."""
    count = body.num_top
    if not body.echo and count is None:
        return (), ()
    rows, vocabulary = [ids for ids in prompts for _ in range(body.num_rows)], await vocabulary_of(parts.backbone)
    logs = [] if count is None else [CompletionLog(vocabulary, count, body.echo) for _ in rows]
    # What was read of a prompt is echoed, which is not always all of it.
    return [echoed_text(vocabulary, ids) for ids in rows] if body.echo else [], logs


def _kept(written: Sequence[Written], body: CompletionRequest) -> list[int]:
    """The rows that are sent: to every prompt the `n` whose tokens are likeliest on average."""
    rows = range(len(written))
    if body.num_rows == body.n:
        return list(rows)
    by_prompt = [rows[first : first + body.num_rows] for first in range(0, len(rows), body.num_rows)]
    return [place for some in by_prompt for place in sorted(some, key=lambda place: -written[place].mean_logprob)[: body.n]]
