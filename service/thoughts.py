"""A reply after thought tracing: what the asked-about mind thinks is traced first, then the question is asked of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from adapters.backbone import Backbone, Message
from engine.decoding.thought_tracing import Answers, Ask, ThoughtTracing
from engine.decoding.tracing import Tracing
from engine.decoding.tracing_prompts import sentences
from engine.engine import Completion, Continuation, Delta, Engine, GenerationRequest
from service.errors import ApiError
from service.writing import Generate, closed_at_the_end


def traced(engine: Engine, rows: Generate, backbone: Backbone, tracing: Tracing, turns: Sequence[Message] | None) -> Generate:
    """`rows` once the thoughts are known. ApiError where there is no story with a question; `turns` is None without a chat."""
    if not turns or turns[-1]["role"] != "user":
        rule = "Thought tracing reads the last message of a chat, which is the user's, but this request has none"
        raise ApiError(400, f"{rule}. Send messages, or leave decoding.tracing out.", "invalid_value", "decoding")
    *story, question = sentences(turns[-1]["content"]) or [""]
    if not story or not question.endswith("?"):
        rule = "Thought tracing reads a story that ends with its question, but the last message does not"
        raise ApiError(400, f"{rule}. Put the question, with its mark, at the end.", "invalid_value", "messages")
    return _Traced(engine, rows, backbone, tracing, tuple(turns), " ".join(story), question).generate


@dataclass(frozen=True)
class _Traced:
    """Every token that tracing writes comes as a delta without text; the reply itself streams."""

    engine: Engine
    rows: Generate
    backbone: Backbone
    tracing: Tracing
    turns: tuple[Message, ...]
    story: str
    question: str

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        asking = ThoughtTracing(self.backbone, self.tracing, request.profile, request.seed or 0)
        rounds = asking.rounds(self.story, self.question)
        ask = next(rounds)
        while True:
            answers = await self._answered(ask, request.profile)
            for answer in answers:
                if isinstance(answer, Completion):
                    for token_id, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
                        yield Delta("", token_id, logprob)
            try:
                ask = rounds.send(answers)
            except StopIteration as done:
                told = done.value
                break
        last = {**self.turns[-1], "content": f"{told.story}\n{self.question}"}
        ids = self.backbone.chat_ids([*self.turns[:-1], last])
        room = max(1, min(request.max_new_tokens, self.backbone.context_length - len(ids)))
        stream = self.rows(replace(request, prompt_ids=ids, max_new_tokens=room))
        async with closed_at_the_end(stream):
            async for delta in stream:
                yield delta

    async def _answered(self, ask: Ask, profile: str | None) -> Answers:
        judging = [one for one in ask if isinstance(one, Continuation)]
        if judging:
            return await asyncio.to_thread(partial(self.engine.score, judging, profile))
        rows = [asyncio.create_task(self._whole(one)) for one in ask if isinstance(one, GenerationRequest)]
        try:
            return await asyncio.gather(*rows)
        finally:
            for row in rows:
                row.cancel()

    async def _whole(self, request: GenerationRequest) -> Completion:
        stream = self.rows(request)
        async with closed_at_the_end(stream):
            return Completion.of(request, [delta async for delta in stream])
