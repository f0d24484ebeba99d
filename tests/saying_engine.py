"""An engine that says what a test tells it to, token by token, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Delta, Engine, GenerationRequest
from engine.errors import EngineError
from engine.text import TextStream


@dataclass
class SayingEngine(IdleEngine):
    """`text` is written in whole and then the end token, as far as a request's limit lets it."""

    backbone: Backbone
    text: str = ""
    waits_s: float = 0.0  # before the first token
    fails_after: int | None = None  # tokens
    refuses: EngineError | None = None
    asked: list[GenerationRequest] = field(default_factory=list)
    num_written: int = 0
    num_running: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        self.asked.append(request)
        if self.refuses is not None:
            raise self.refuses
        ids = [*self.backbone.encode(self.text), min(self.backbone.stop_ids)]
        stream = TextStream(self.backbone.decode, request.stop, request.begun_ids)
        self.num_running += 1
        try:
            await asyncio.sleep(self.waits_s)
            for place, token_id in enumerate(ids[: request.max_new_tokens]):
                if place == self.fails_after:
                    raise RuntimeError("the engine broke")
                await asyncio.sleep(0)
                stream.add(token_id)
                is_end = place == len(ids) - 1
                is_last = is_end or place == request.max_new_tokens - 1
                text = stream.advance(final=is_last)
                reason = "stop" if is_end or stream.stopped else "length"
                self.num_written += 1
                yield Delta(text, token_id, -0.5, reason if is_last or stream.stopped else None)  # type: ignore[arg-type]
                if stream.stopped:
                    return
        finally:
            self.num_running -= 1


if TYPE_CHECKING:
    _: Engine = SayingEngine(Backbone.load(""))
