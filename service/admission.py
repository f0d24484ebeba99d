"""Admission: which requests may wait for the engine, in which order their rows join it, and what each has cost.

The engine gets about as many rows as it runs at once; the others wait here, where the order is fair between keys and where
what would not fit is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace

from engine.engine import Delta, GenerationRequest
from service import meters
from service.caller import Caller
from service.errors import ApiError
from service.fair_line import PriorityLine
from service.quota import Quotas, Reserved, too_many
from service.writing import Generate, closed_at_the_end

_REMEMBERED_S = 30.0  # of ended rows, to tell how fast the line moves
_READ_PER_S = 2**20  # characters of a text, about


@dataclass(frozen=True)
class Bounds:
    """`rows` join the engine at once. What waits is bounded in rows and in tokens, each the most that a row may cost.

    `read_characters`: of long texts that are read for no row at one time.
    """

    rows: int
    queued_rows: int
    queued_tokens: int
    read_characters: int = 2**22


@dataclass(eq=False)
class _Seat:
    rows: int
    given: asyncio.Future[None]


@dataclass
class Load:
    """What was admitted and has no seat yet."""

    rows: int = 0
    tokens: int = 0


class Admission:
    """Lives on one event loop."""

    def __init__(self, bounds: Bounds, quotas: Quotas, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds, self.quotas = bounds, quotas
        self.queued = Load()
        self.seated = 0  # rows
        self._by_key: dict[str | None, Load] = {}
        self._read_by_key: Counter[str | None] = Counter()  # characters
        self._line: PriorityLine[_Seat] = PriorityLine()
        self._clock = clock
        self._ended: deque[tuple[float, int]] = deque()

    def refuse_when_full(self, caller: Caller, rows: int = 1, tokens: int = 1) -> None:
        """ApiError 429 where so much more has no room. Takes microseconds: asked before a body is read, and once it was."""
        bounds, queued, held = self.bounds, self.queued, self._by_key.get(caller.key, Load())
        if rows > bounds.rows + bounds.queued_rows:
            message = f"A request may have {bounds.rows + bounds.queued_rows} completions, but this one has {rows}. Ask in parts."
            raise ApiError(400, message, "too_many_rows")
        total = self.seated + queued.rows
        waiting = max(0, total - bounds.rows)
        more = max(0, total + rows - bounds.rows) - waiting
        is_alone = caller.key is None
        fits_rows = _fits(min(held.rows, waiting), waiting, more, bounds.queued_rows, is_alone)
        if not more or (fits_rows and _fits(held.tokens, queued.tokens, tokens, bounds.queued_tokens, is_alone)):
            return
        wait_s = self._estimated_wait_s()
        message = f"The server has as many requests as it can take ({waiting} completions wait). Try again in {wait_s:.0f} s."
        raise too_many(message, "overloaded", "server_overloaded", wait_s)

    @contextlib.contextmanager
    def reading(self, caller: Caller, characters: int) -> Iterator[None]:
        """Inside, so long a text is read for no row. ApiError 429 where those that are under way leave it no room."""
        held, under_way = self._read_by_key[caller.key], self._read_by_key.total()
        if not _fits(held, under_way, characters, self.bounds.read_characters, caller.key is None):
            wait_s = min(_REMEMBERED_S, max(1.0, under_way / _READ_PER_S))
            message = f"The server reads as many long texts as it can ({under_way} characters). Try again in {wait_s:.0f} s."
            meters.TURNED_AWAY.labels("server_overloaded").inc()
            raise too_many(message, "overloaded", "server_overloaded", wait_s)
        self._read_by_key[caller.key] += characters
        try:
            yield
        finally:
            self._read_by_key[caller.key] -= characters
            self._read_by_key += Counter()  # keys that read nothing are forgotten

    def ticket(self, caller: Caller, rows_of: Callable[[GenerationRequest], int] = lambda _: 1) -> Ticket:
        """For one request, which is not admitted before its `enter`. `rows_of` says how many rows of the engine one takes."""
        return Ticket(self, caller, rows_of)

    def _note(self, key: str | None, rows: int, tokens: int) -> None:
        """So much more waits, or less."""
        held = self._by_key.setdefault(key, Load())
        for load in (self.queued, held):
            load.rows, load.tokens = load.rows + rows, load.tokens + tokens
        meters.QUEUED_ROWS.set(self.queued.rows)
        meters.QUEUED_TOKENS.set(self.queued.tokens)
        if not held.rows and not held.tokens:
            del self._by_key[key]

    @contextlib.asynccontextmanager
    async def _seat(self, priority: int, key: str | None, rows: int, tokens: int) -> AsyncGenerator[None, None]:
        """Waits for its turn; inside, so many rows are its own. Whoever stops waiting leaves the line."""
        seat = _Seat(min(rows, self.bounds.rows), asyncio.get_running_loop().create_future())
        self._line.add(priority, key, tokens, seat)
        self._seat_next()
        try:
            await seat.given
            yield
        finally:
            if seat.given.done() and not seat.given.cancelled():
                self.seated -= seat.rows
                self._ended.append((self._clock(), tokens))
            else:
                self._line.remove(priority, key, seat)
            self._seat_next()

    def _seat_next(self) -> None:
        while (seat := self._line.first) is not None and self.seated + seat.rows <= self.bounds.rows:
            self._line.take()
            if not seat.given.done():
                self.seated += seat.rows
                seat.given.set_result(None)

    def _estimated_wait_s(self) -> float:
        """Until half of what waits is done, at the pace of the last half minute."""
        now = self._clock()
        while self._ended and now - self._ended[0][0] > _REMEMBERED_S:
            self._ended.popleft()
        done = sum(tokens for _, tokens in self._ended)
        if not done:
            return _REMEMBERED_S
        per_s = done / max(1.0, now - self._ended[0][0])
        return min(_REMEMBERED_S, max(1.0, self.queued.tokens / 2 / per_s))


class Ticket:
    """One request's place: entered, its rows one after the other seated, closed. Closing gives back what was not used."""

    def __init__(self, admission: Admission, caller: Caller, rows_of: Callable[[GenerationRequest], int]) -> None:
        self._admission, self._caller, self._rows_of = admission, caller, rows_of
        self._waiting = Load()  # rows and tokens that were announced and have no seat yet
        self._reserved: Reserved | None = None
        self.used_tokens = 0
        self.waited_s = 0.0  # the longest of its rows

    def enter(self, requests: tuple[GenerationRequest, ...], rows_each: int = 1) -> None:
        """ApiError 429 where there is no room or the key's quota does not allow it; then nothing is taken."""
        rows = sum(self._rows_of(request) for request in requests) * rows_each
        tokens = sum(self._rows_of(request) * _most_tokens(request) for request in requests) * rows_each
        try:
            self._admission.refuse_when_full(self._caller, rows, tokens)
            self._reserved = self._admission.quotas.reserve(self._caller, tokens)
        except ApiError as error:
            meters.TURNED_AWAY.labels(error.code).inc()
            raise
        self._waiting = Load(rows, tokens)
        self._admission._note(self._caller.key, rows, tokens)

    def through(self, generate: Generate) -> Generate:
        """As `generate`, with a row's turn waited for and its tokens counted."""

        async def seated(request: GenerationRequest) -> AsyncGenerator[Delta, None]:
            rows = self._rows_of(request)
            tokens = rows * _most_tokens(request)
            submitted = self._admission._clock()
            with self._no_longer_waiting(rows, tokens) as has_seat:
                async with self._admission._seat(request.priority, self._caller.key, rows, tokens):
                    has_seat()
                    waited_s = self._admission._clock() - submitted
                    self.waited_s = max(self.waited_s, waited_s)
                    self.used_tokens += rows * (len(request.prompt_ids) + len(request.begun_ids))
                    stream = generate(request)
                    async with closed_at_the_end(stream):
                        async for delta in stream:
                            # Of voters the elected one is told; the others wrote about as much.
                            self.used_tokens += rows * (delta.token_id is not None)
                            yield _with_wait(delta, waited_s)

        return seated

    def close(self) -> None:
        """May be called again."""
        self._leave(self._waiting.rows, self._waiting.tokens)
        if self._reserved is not None:
            self._reserved.settle(self.used_tokens)

    @contextlib.contextmanager
    def _no_longer_waiting(self, rows: int, tokens: int) -> Iterator[Callable[[], None]]:
        """The rows count as waiting until the function is called, or until it ends without."""
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._leave(rows, tokens)

        try:
            yield leave
        finally:
            leave()

    def _leave(self, rows: int, tokens: int) -> None:
        # Branches ask for more rows than were announced where a round follows a round.
        rows, tokens = min(rows, self._waiting.rows), min(tokens, self._waiting.tokens)
        self._waiting = Load(self._waiting.rows - rows, self._waiting.tokens - tokens)
        if rows or tokens:
            self._admission._note(self._caller.key, -rows, -tokens)


def _most_tokens(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + len(request.begun_ids) + request.max_new_tokens


def _fits(held: int, queued: int, more: int, bound: int, is_alone: bool) -> bool:
    """Of several keys each may hold as much as is free: a flood of one leaves room for the next, and that for one more."""
    if held == 0 and queued < bound:
        return True
    return queued + more <= bound if is_alone else held + more <= bound - queued


def _with_wait(delta: Delta, waited_s: float) -> Delta:
    """The engine's clock began when the row joined it: the wait before belongs to the journey too."""
    journey = delta.journey
    if journey is None or not waited_s:
        return delta
    first_s = None if journey.first_token_s is None else journey.first_token_s + waited_s
    return replace(delta, journey=replace(journey, waited_s=journey.waited_s + waited_s, first_token_s=first_s))
