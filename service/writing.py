"""One request being written: its choices in the engine's batch, their deltas as they come, and the counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from adapters.errors import AdapterError
from engine.engine import Completion, Delta, GenerationRequest
from engine.errors import EngineError, TimedOut
from service import meters
from service.deadline import Allowed
from service.errors import ApiError, from_engine
from service.lease import Lease
from service.openai_shapes import Usage

log = logging.getLogger("graftline.writing")
Generate = Callable[[GenerationRequest], AsyncIterator[Delta]]


class NotRead(Exception):
    """More waits for the reader than may."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(num_waiting)
        self.num_waiting = num_waiting


@dataclass
class Writing:
    """`requests` is one a choice. The lease is released when `deltas` ends, however it ends."""

    generate: Generate
    lease: Lease
    requests: tuple[GenerationRequest, ...]
    allowed: Allowed
    told: Callable[[], Mapping[str, JsonValue]] = dict  # of how the reply was made; known by the end of its deltas
    rows_each: int = 1  # of the engine at one time, for every request
    reasoning_tokens: Callable[[], int | None] = lambda: None  # of those generated so far; None: there is no chain to count
    rows_per_prompt: int = 1  # replies to the same prompt stand together
    started: float = field(default_factory=time.perf_counter)
    generated_tokens: int = 0
    cached_tokens: dict[int, int] = field(default_factory=dict)  # of the prompt of each choice that has begun
    first_token_s: float | None = None  # from `started`; None until one is there
    queue_s: float | None = None  # the longest that a row of it waited for its place; None until one has it
    ended_s: float | None = None
    outcome: str = "cancelled"
    params: Mapping[str, str] = field(default_factory=dict)  # the client's fields by the engine's
    at_end: list[Callable[[], None]] = field(default_factory=list)  # called once, when all is known
    _came: asyncio.Queue[tuple[int, Delta | None]] = field(default_factory=asyncio.Queue, init=False)
    _cut: ApiError | None = field(default=None, init=False)

    @property
    def model(self) -> str:
        return self.lease.served.id

    @property
    def usage(self) -> Usage:
        first = self.requests[:: self.rows_per_prompt]  # a prompt counts once, however many replies it has
        prompt = sum(len(request.prompt_ids) + len(request.begun_ids) for request in first)
        cached = sum(count for index, count in self.cached_tokens.items() if index % self.rows_per_prompt == 0)
        usage = Usage.of(prompt, self.generated_tokens, min(prompt, cached))
        thought = self.reasoning_tokens()
        return usage if thought is None else usage.model_copy(update={"completion_tokens_details": {"reasoning_tokens": thought}})

    def facts(self) -> Mapping[str, str | int | float | None]:
        """For the log: what answered, what it cost and how it ended."""
        return {
            "model": self.model,
            "outcome": self.outcome,
            "choices": len(self.requests),
            "prompt_tokens": self.usage.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "cached_tokens": sum(self.cached_tokens.values()),
            "queue_s": None if self.queue_s is None else round(self.queue_s, 6),
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 6),
        }

    def cut(self, error: ApiError) -> None:
        """Ends it from outside: whoever reads the deltas gets the error in place of the next one."""
        self._cut = error
        self._came.put_nowait((0, None))

    async def deltas(
        self, ping_s: float | None = None, max_unread: int | None = None
    ) -> AsyncGenerator[tuple[int, Delta | None], None]:
        """Pairs of a choice's index and its next delta. Closing the generator frees the rows. Failures are ApiError.

        None in place of a delta: nothing came for `ping_s` seconds. Rows end, and with them the reply, once more than
        `max_unread` deltas were not taken: the engine does not wait for a reader.
        """
        rows = [asyncio.create_task(self._write(index, max_unread)) for index in range(len(self.requests))]
        meters.RUNNING.labels(self.model).inc(len(rows))
        unfinished = len(rows)
        ends = asyncio.get_running_loop().time() + self.allowed.left_s
        try:
            while unfinished:
                pings_at = math.inf if ping_s is None else asyncio.get_running_loop().time() + ping_s
                try:
                    # Not wait_for: before Python 3.12 it drops a cancellation that comes together with an item.
                    async with asyncio.timeout_at(min(ends, pings_at)):
                        index, delta = await self._came.get()
                except TimeoutError:
                    if ends <= pings_at:  # the clock does not tell: uvloop rounds its timers to milliseconds, down too
                        raise
                    yield 0, None
                    continue
                if self._cut is not None:
                    raise self._cut
                if delta is None:
                    unfinished -= 1
                    await rows[index]  # raises what the row raised
                    continue
                if delta.journey is not None and index not in self.cached_tokens:
                    meters.QUEUE_TIME.labels(self.model).observe(delta.journey.waited_s)
                    self.queue_s = max(self.queue_s or 0.0, delta.journey.waited_s)
                    self.cached_tokens[index] = delta.journey.cached_tokens
                if delta.token_id is not None:
                    self._count_token()
                yield index, delta
            self.outcome = "completed"
        except TimeoutError as error:
            self.outcome = "timeout"
            message = f"A request may take {self.allowed.timeout_s:g} s, and this one was not done. Ask for fewer tokens."
            raise ApiError(504, message, "timeout", None, "server_error", {"x-should-retry": "false"}) from error
        except (EngineError, AdapterError) as error:
            answer = from_engine(error, self.model, self.params)
            self.outcome = "refused" if answer.status < 500 else ("timeout" if isinstance(error, TimedOut) else "failed")
            raise answer from error
        except NotRead as error:
            self.outcome = "cancelled"
            message = (
                f"{error.num_waiting} steps of the reply were not read, so it was ended. Read faster, or ask for fewer tokens."
            )
            raise ApiError(408, message, "reply_not_read", None, "server_error", {"x-should-retry": "false"}) from error
        except ApiError:  # it was cut
            self.outcome = "cancelled"
            raise
        except Exception as error:
            self.outcome = "failed"
            log.exception("A request on %s failed", self.model)
            message = f"The engine failed at this request ({type(error).__name__}). The server's log has the reason."
            raise ApiError(500, message, "engine_error", None, "server_error") from error
        finally:
            for row in rows:
                row.cancel()
            # Nothing is awaited here: a server that cancels a stream cancels every further await of it too.
            ended = asyncio.gather(*rows, return_exceptions=True)
            if all(row.done() for row in rows):
                self._finish(len(rows))
            else:
                ended.add_done_callback(lambda _: self._finish(len(rows)))

    async def _write(self, index: int, max_unread: int | None) -> None:
        stream = self.generate(self.requests[index])
        try:
            async with closed_at_the_end(stream):
                async for delta in stream:
                    if max_unread is not None and self._came.qsize() >= max_unread:
                        raise NotRead(self._came.qsize())
                    self._came.put_nowait((index, delta))
        finally:
            self._came.put_nowait((index, None))

    def _count_token(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.started
            meters.FIRST_TOKEN.labels(self.model).observe(self.first_token_s)
        self.generated_tokens += 1

    def _finish(self, rows: int) -> None:
        meters.RUNNING.labels(self.model).dec(rows)
        meters.REQUESTS.labels(self.model, self.outcome).inc()
        meters.PROMPT_TOKENS.labels(self.model).inc(self.usage.prompt_tokens)
        meters.GENERATED_TOKENS.labels(self.model).inc(self.generated_tokens)
        self.ended_s = time.perf_counter() - self.started
        meters.LATENCY.labels(self.model).observe(self.ended_s)
        per_choice = self.generated_tokens / rows
        if self.first_token_s is not None and per_choice > 1:
            meters.TOKEN_TIME.labels(self.model).observe((self.ended_s - self.first_token_s) / (per_choice - 1))
        for told in self.at_end:
            try:
                told()
            except Exception:  # what counts a request does not break it
                log.exception("A request on %s ended, and could not be counted", self.model)
        self.lease.release()


@dataclass
class Written:
    """A choice that is complete."""

    text: str = ""
    finish_reason: str = "stop"
    num_tokens: int = 0
    logprob: float = 0.0  # of all of them together

    @property
    def mean_logprob(self) -> float:
        return self.logprob / max(1, self.num_tokens)


async def collect(writing: Writing, hear: Callable[[int, Delta], object] = lambda index, delta: None) -> list[Written]:
    """Every choice in full; `hear` is told every delta."""
    choices = [Written() for _ in writing.requests]
    async with contextlib.aclosing(writing.deltas()) as deltas:
        async for index, delta in deltas:
            if delta is None:
                continue
            hear(index, delta)
            choices[index].text += delta.text
            if delta.logprob is not None:
                choices[index].num_tokens += 1
                choices[index].logprob += delta.logprob
            if delta.finish_reason is not None:
                choices[index].finish_reason = delta.finish_reason
    return choices


@contextlib.asynccontextmanager
async def closed_at_the_end(stream: AsyncIterator[Delta]) -> AsyncIterator[None]:
    """The protocol promises an iterator; where it is a generator, closing it frees the engine's row at once."""
    try:
        yield
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def together(generate: Generate, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """What each writes, as rows of one batch; a failure or a cancellation frees all of them."""

    async def whole(request: GenerationRequest) -> Completion:
        stream = generate(request)
        async with closed_at_the_end(stream):
            return Completion.of(request, [delta async for delta in stream])

    rows = [asyncio.create_task(whole(request)) for request in requests]
    try:
        return await asyncio.gather(*rows)
    finally:
        for row in rows:
            row.cancel()


def spent(completions: Iterable[Completion]) -> Iterator[Delta]:
    """Every token that these cost, as deltas without text: what a reply that is made of them counts."""
    for completion in completions:
        for token_id, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            yield Delta("", token_id, logprob)
