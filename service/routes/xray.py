"""`/v1/xray`: which steps of a reply its answer rests on."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, field_validator, model_validator

from engine.engine import GenerationRequest
from evaluation.task import trace_of
from service.answering import admitted, leased, released_on_failure
from service.caller import caller_of
from service.chat_fields import ChatFields
from service.deadline import allowed
from service.described import XRay, answers
from service.dispatch import dispatch
from service.json_body import JsonRoute
from service.openai_shapes import model_header
from service.parts import PartsHere
from service.prompts import off_the_loop, read_chat
from service.request_ids import request_id
from service.request_log import tell
from service.streaming import while_connected
from service.writing import Generate, Writing
from service.xray import Break, Chain, Point, Row, points, read, rows_of, told

router = APIRouter(route_class=JsonRoute)
_ENGINES_GRACE_S = 1.0


class XRayRequest(ChatFields):
    """`messages` is what was asked, `reply` what was answered; `model` is who reads it, whoever wrote it."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    reply: str = Field(min_length=1)
    reasoning: str = ""
    """Of a backbone that thinks between markers: `reasoning_content` of the message."""
    answer: str | None = Field(default=None, min_length=1, max_length=4096)
    """What the steps are read for; left out: the reply's own answer."""
    breaks: tuple[Break, ...] = ("cut",)
    other: str | None = None
    """A reply to another question, whose steps are swapped in."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=1024)] = 32
    cache_salt: str = Field(default="", max_length=256)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None

    @field_validator("continue_final_message")
    @classmethod
    def _the_reply_has_a_field(cls, value: bool) -> bool:
        if value:
            raise ValueError("what the reply begins with belongs into reply")
        return value

    @model_validator(mode="after")
    def _swaps_what_is_there(self) -> XRayRequest:
        if "swapped" in self.breaks and not (self.other and trace_of(self.other).steps):
            raise ValueError("breaks: swapped needs the steps of a reply to another question: give it as other")
        return self


@router.post("/v1/xray", summary="Which steps an answer rests on", responses=answers(XRay))
async def xray(parts: PartsHere, request: Request, body: XRayRequest) -> Response:
    lease = await leased(parts, body.model)
    with released_on_failure(lease):
        prompt = await read_chat(parts.backbone, body, lease.served.prompt_overhead)
        if routed := await dispatch(parts, lease, [prompt.ids], caller_of(request)):
            prompt = await read_chat(parts.backbone, body, lease.served.prompt_overhead)
        other = trace_of(body.other or "").steps

        def laid_out() -> tuple[Chain, list[Point], list[Row]]:
            chain = Chain.of(parts.backbone, prompt.ids, body.reply, body.reasoning, body.answer)
            broken = points(parts.backbone, chain, other, body.breaks)
            return chain, broken, rows_of(usual, chain, broken, body.breaks, body.max_answer_tokens)

        time_allowed = allowed(request, body.timeout, parts.settings.request_timeout_s)
        usual = GenerationRequest(
            prompt.ids,
            lease.served.profile,
            cache_salt=body.cache_salt,
            priority=body.priority or 0,
            deadline=time.monotonic() + time_allowed.left_s + _ENGINES_GRACE_S,
        )
        chain, broken, rows = await off_the_loop(len(body.reply), laid_out)

        def made(generate: Generate) -> Writing:
            params = {"prompt_ids": "reply", "num_prompt_logprobs": "model"}
            return Writing(generate, lease, tuple(row.request for row in rows), time_allowed, params=params)

        writing = admitted(parts, request, body.priority, made)
    tell(request, writing.facts)
    found = await while_connected(request, read(writing, chain, rows))
    question = body.messages[-1].text
    answer = {
        "id": f"xray-{request_id(request)}",
        "object": "xray",
        "created": int(time.time()),
        "model": writing.model,
        **told(question, chain, other, broken, body.breaks, found),
        "usage": writing.usage.model_dump(exclude_none=True),
        **({"graftline": dict(routed)} if routed else {}),
    }
    return JSONResponse(answer, headers=model_header(writing.model))
