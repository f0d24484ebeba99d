"""Prompts read back: the log-probability of every token of a prompt as its profile's row reads it, prefixes computed once."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from engine.bank import BASE, AdapterBank
from engine.engine import Completion, Continuation, Delta, FinishReason, GenerationRequest, ReadToken
from engine.errors import EngineError, NotFinite
from engine.score import lay_out, read_batch
from engine.slices import Run, in_steps
from engine.text import TextStream
from engine.twin import Twin

Stream = AsyncGenerator[Delta, None]
Write = Callable[[Sequence[GenerationRequest]], list[Completion]]


class ReadAs(NamedTuple):
    """How a request's row reads its prompt. `is_plain`: its next token is drawn from what was read alone."""

    name: str  # in the bank
    prompt: Prompt
    is_plain: bool


# What has no part in which token follows greedily, with values that stand for any.
_ANY = GenerationRequest((0,), max_new_tokens=1, temperature=0.0)
_FREE = ("prompt_ids", "profile", "policy", "seed", "top_p", "begun_ids", "chain", "top_logprobs", "num_prompt_logprobs")
_SCHEDULING = ("cache_salt", "priority", "deadline")


def is_likeliest_token(request: GenerationRequest) -> bool:
    """Whether all that it asks for is the one token that the model holds likeliest."""
    return replace(request, **{name: getattr(_ANY, name) for name in (*_FREE, *_SCHEDULING)}) == _ANY


@dataclass(frozen=True)
class PromptRead:
    """`following` is the likeliest token behind the prompt; None where the row may draw another."""

    tokens: tuple[ReadToken, ...]
    following: ReadToken | None


@dataclass(frozen=True)
class Layout:
    """A prompt as what scoring takes. Soft thoughts stand between two stretches of tokens, and are not scored themselves."""

    request: GenerationRequest
    is_plain: bool
    parts: tuple[tuple[Continuation, Prompt], ...]

    @classmethod
    def of(cls, request: GenerationRequest, read_as: ReadAs) -> Layout:
        """The last stretch ends with any token: for the place behind the prompt."""
        prompt, is_plain = read_as.prompt, read_as.is_plain
        behind, num_added = (*request.begun_ids, 0), len(prompt.ids) - len(request.prompt_ids)
        if not num_added:
            return cls(request, is_plain, (_part(Prompt(prompt.ids[:1]), (*prompt.ids[1:], *behind)),))
        first = prompt.soft_at - 1
        last = first + num_added
        if (*prompt.ids[:first], *prompt.ids[last:]) != request.prompt_ids:
            raise EngineError("A prompt that an adapter changes elsewhere than at one place is not read back. Ask without it.")
        before = (_part(Prompt(prompt.ids[:1]), prompt.ids[1:first]),) if first > 1 else ()
        return cls(request, is_plain, (*before, _part(replace(prompt, ids=prompt.ids[:last]), (*prompt.ids[last:], *behind))))

    def read(self, parts: Sequence[Sequence[ReadToken]]) -> PromptRead:
        """From what was read at each part. NotFinite where that is no number."""
        *tokens, following = (token for part in parts for token in part)
        count = self.request.num_prompt_logprobs or 0
        tokens = [token._replace(top=token.top[:count]) for token in tokens]
        if any(math.isnan(token.logprob or 0.0) for token in tokens):
            raise NotFinite("Logits must be finite, but a prompt was read back as NaN. Its adapter has diverged: unload it.")
        written = len(self.request.prompt_ids) + len(self.request.begun_ids)
        opening = () if len(tokens) == written else (ReadToken(self.request.prompt_ids[0], None),)
        (likeliest, logprob), *_ = following.top
        next_token = ReadToken(likeliest, logprob, following.top) if self.is_plain else None
        return PromptRead((*opening, *tokens), next_token)


def _part(prompt: Prompt, ids: tuple[int, ...]) -> tuple[Continuation, Prompt]:
    return Continuation(prompt.ids, ids), prompt


class PromptReader:
    """Reads for an engine: as scoring does, a batch between two steps."""

    def __init__(
        self,
        backbone: Backbone,
        twin: Twin,
        bank: AdapterBank,
        run: Run,
        max_tokens: Callable[[], int],
        using: Callable[..., AbstractContextManager[None]],
        read_as: Callable[[GenerationRequest], ReadAs],
    ) -> None:
        """`run` calls its argument between two steps, and so is `read_as` called. Inside `using` a name keeps its weights.

        `max_tokens` says what one forward may hold.
        """
        self._backbone, self._twin, self._bank, self._max_tokens = backbone, twin, bank, max_tokens
        self._run, self._read_as, self._using = run, read_as, using
        self._queue = ReadingQueue(self.read)
        self.num_tokens = self.num_tokens_unshared = 0  # that went through a forward, and that would have without sharing

    def read(self, requests: Sequence[GenerationRequest]) -> list[PromptRead]:
        found: dict[int, PromptRead] = {}
        with self._using(*(request.profile or BASE for request in requests)):
            as_read: list[ReadAs] = [self._run(partial(self._read_as, request)) for request in requests]
            for name in {read.name for read in as_read}:
                places = [place for place, read in enumerate(as_read) if read.name == name]
                layouts = [Layout.of(requests[place], as_read[place]) for place in places]
                found.update(zip(places, self._read(layouts, name), strict=True))
        return [found[place] for place in range(len(requests))]

    async def stream(self, request: GenerationRequest, write: Callable[[GenerationRequest], Stream]) -> Stream:
        """What `write` gives, with the prompt's tokens in the first delta."""
        read = await self._queue.read(request)
        told = self._told(request, read)
        if told is not None:
            yield told
            return
        prompt = read.tokens
        async with aclosing(write(replace(request, num_prompt_logprobs=None))) as deltas:
            async for delta in deltas:
                yield replace(delta, prompt=prompt)
                prompt = ()

    def complete(self, requests: Sequence[GenerationRequest], write: Write) -> list[Completion]:
        """Those that ask for it with their prompts' tokens; `write` completes what is more than was read."""
        asking = [place for place, request in enumerate(requests) if request.num_prompt_logprobs is not None]
        read = dict(zip(asking, self.read([requests[place] for place in asking]), strict=True))
        told = {place: delta for place, one in read.items() if (delta := self._told(requests[place], one)) is not None}
        found = {place: Completion.of(requests[place], [delta]) for place, delta in told.items()}
        left = [place for place in range(len(requests)) if place not in told]
        seeds = [place if requests[place].seed is None else requests[place].seed for place in left]
        asked = [replace(requests[place], num_prompt_logprobs=None, seed=seed) for place, seed in zip(left, seeds, strict=True)]
        for place, completion in zip(left, write(asked), strict=True):
            found[place] = replace(completion, prompt=read[place].tokens if place in read else ())
        return [found[place] for place in range(len(requests))]

    def close(self) -> None:
        self._queue.close()

    def _read(self, layouts: Sequence[Layout], name: str) -> list[PromptRead]:
        parts = [part for layout in layouts for part in layout.parts]
        limit = self._max_tokens()
        work = lay_out([continuation for continuation, _ in parts], [prompt for _, prompt in parts], limit)
        # One more than any asks for: the likeliest token behind the prompt is always known.
        count = max(1, *(max(layout.request.num_prompt_logprobs or 0, layout.request.top_logprobs) for layout in layouts))
        found: dict[int, tuple[ReadToken, ...]] = {}
        for batch in work.batches:
            found.update(in_steps(self._run, read_batch(work, batch, self._twin, self._bank, name, limit, count)))
        self.num_tokens += work.num_nodes
        self.num_tokens_unshared += work.num_unshared
        taken = iter(range(len(parts)))
        return [layout.read([found[next(taken)] for _ in layout.parts]) for layout in layouts]

    def _told(self, request: GenerationRequest, read: PromptRead) -> Delta | None:
        """The whole reply, where the prompt's reading has it: no token, or the likeliest one. None: it must be written."""
        if request.max_new_tokens == 0:
            return Delta("", None, None, "length", prompt=read.tokens)
        if read.following is None or not is_likeliest_token(request):
            return None
        token_id, logprob, top = read.following
        ended = token_id in self._backbone.stop_ids
        text = TextStream(self._backbone.decode, begun=request.begun_ids)
        text.add(token_id)
        reason: FinishReason = "stop" if ended else "length"
        return Delta(text.advance(final=True), token_id, logprob, reason, top[: request.top_logprobs], read.tokens)


class ReadingQueue:
    """Requests that come together are read together, outside the thread that steps, as one call of `read`."""

    def __init__(self, read: Callable[[Sequence[GenerationRequest]], list[PromptRead]]) -> None:
        self._read = read
        self._waiting: deque[tuple[GenerationRequest, Future[PromptRead]]] = deque()
        self._thread = ThreadPoolExecutor(1, "graftline-read")

    async def read(self, request: GenerationRequest) -> PromptRead:
        found = Future[PromptRead]()
        self._waiting.append((request, found))
        try:
            self._thread.submit(self._read_waiting)
        except RuntimeError as error:  # of an executor that is shut down
            raise EngineError("The engine is closed. Make a new one.") from error
        return await asyncio.wrap_future(found)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        while self._waiting:
            _, found = self._waiting.popleft()
            if found.set_running_or_notify_cancel():
                found.set_exception(EngineError("The engine was closed while this prompt was read. Ask again."))

    def _read_waiting(self) -> None:
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        asked = [(request, found) for request, found in taken if found.set_running_or_notify_cancel()]
        if not asked:
            return
        try:
            read = self._read([request for request, _ in asked])
        except Exception:  # of one of them: the others are read all the same
            self._read_alone(asked)
            return
        for (_, found), one in zip(asked, read, strict=True):
            found.set_result(one)

    def _read_alone(self, asked: Sequence[tuple[GenerationRequest, Future[PromptRead]]]) -> None:
        for request, found in asked:
            try:
                found.set_result(self._read([request])[0])
            except Exception as error:
                found.set_exception(error)
