"""A reply after thought tracing: what the asked-about mind thinks is traced first, then the question is asked of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import JsonValue

from adapters.backbone import Backbone, Message
from engine.decoding.thought_tracing import Answers, Ask, ThoughtTracing, Traced
from engine.decoding.tracing import Tracing
from engine.decoding.tracing_prompts import sentences
from engine.engine import Completion, Continuation, Delta, Engine, GenerationRequest
from service.errors import ApiError
from service.writing import Generate, closed_at_the_end, spent, together


def traced(engine: Engine, rows: Generate, backbone: Backbone, tracing: Tracing, turns: Sequence[Message] | None) -> Tracer:
    """Writes as `rows` do, once the thoughts are known. ApiError without a story and its question; no chat: `turns` is None."""
    if not turns or turns[-1]["role"] != "user":
        rule = "Thought tracing reads the last message of a chat, which is the user's, but this request has none"
        raise ApiError(400, f"{rule}. Send messages, or leave decoding.tracing out.", "invalid_value", "decoding")
    *story, question = sentences(turns[-1]["content"]) or [""]
    if not story or not question.endswith("?"):
        rule = "Thought tracing reads a story that ends with its question, but the last message does not"
        raise ApiError(400, f"{rule}. Put the question, with its mark, at the end.", "invalid_value", "messages")
    return Tracer(engine, rows, backbone, tracing, tuple(turns), " ".join(story), question)


@dataclass
class Tracer:
    """Every token that tracing writes comes as a delta without text; the reply itself streams.

    `found` is what was traced for the one reply of a chat: None until its first piece is written.
    """

    engine: Engine
    rows: Generate
    backbone: Backbone
    tracing: Tracing
    turns: tuple[Message, ...]
    story: str
    question: str
    found: Traced | None = field(default=None, init=False)

    @property
    def told(self) -> dict[str, JsonValue]:
        """What a reply says of its tracing; the clause says why it answers the plain question instead."""
        if self.found is None:
            return {}
        if self.found.is_traced:
            return {"tracing": {"traced": True, "agent": self.found.agent}}
        return {"tracing": {"traced": False, "reason": f"{self.found.why}; the plain question was answered"}}

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        asking = ThoughtTracing(self.backbone, self.tracing, request.profile, request.seed or 0)
        rounds = asking.rounds(self.story, self.question)
        ask = next(rounds)
        while True:
            answers = await self._answered(ask, request)
            for delta in spent(answer for answer in answers if isinstance(answer, Completion)):
                yield delta
            try:
                ask = rounds.send(answers)
            except StopIteration as done:
                found: Traced = done.value
                break
        self.found = found
        stream = self.rows(self._asked_of(found, request) if found.is_traced else request)
        async with closed_at_the_end(stream):
            async for delta in stream:
                yield delta

    def _asked_of(self, found: Traced, request: GenerationRequest) -> GenerationRequest:
        last = {**self.turns[-1], "content": f"{found.story}\n{self.question}"}
        ids = self.backbone.chat_ids([*self.turns[:-1], last])
        room = max(1, min(request.max_new_tokens, self.backbone.context_length - len(ids)))
        return replace(request, prompt_ids=ids, max_new_tokens=room)

    async def _answered(self, ask: Ask, request: GenerationRequest) -> Answers:
        judging = [one for one in ask if isinstance(one, Continuation)]
        if judging:
            return await asyncio.to_thread(partial(self.engine.score, judging, request.profile))
        # The client's own words stand in these too: they are of the same tenant, and of the same time.
        asked = [
            replace(one, cache_salt=request.cache_salt, priority=request.priority, deadline=request.deadline)
            for one in ask
            if isinstance(one, GenerationRequest)
        ]
        return await together(self.rows, asked)
