"""Shadows: requests that are written again on a release that no client reads, where the engine has room for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from pydantic import JsonValue

from adapters.errors import AdapterError
from engine.engine import Delta, Engine, GenerationRequest
from engine.errors import EngineError
from registry.canary_chain import Canary
from service import meters
from service.canary_counts import Ending
from service.errors import ApiError, from_engine
from service.lease import Lease
from service.models import ServedModels
from service.writing import Writing, closed_at_the_end

log = logging.getLogger("graftline.canary")

Again = Callable[[Lease], Writing]
"""The same request on another release."""
MAX_WAITING = 16
PATIENCE_S, _POLL_S = 10.0, 0.02
# Of the engine's rows: where more are taken, a mirrored request would slow the clients'.
MAX_BUSY = 0.5


@dataclass
class Heard:
    """What the champion wrote, a text a choice."""

    requests: tuple[GenerationRequest, ...]
    texts: list[str]

    @classmethod
    def through(cls, writing: Writing) -> Heard:
        heard, generate = cls(writing.requests, [""] * len(writing.requests)), writing.generate
        places: dict[int, list[int]] = {}  # several, where one request is asked as several choices
        for place, request in enumerate(writing.requests):
            places.setdefault(id(request), []).append(place)

        async def listening(request: GenerationRequest) -> AsyncIterator[Delta]:
            place, stream = places[id(request)].pop(0), generate(request)
            async with closed_at_the_end(stream):
                async for delta in stream:
                    heard.texts[place] += delta.text
                    yield delta

        writing.generate = listening
        return heard

    @property
    def is_greedy(self) -> bool:
        return all(_is_greedy(request) for request in self.requests)


@dataclass
class Agreement:
    """Of greedy replies: how many say the same, and how long both are."""

    compared: int = 0
    same: int = 0
    shadow_characters: int = 0
    champion_characters: int = 0

    def add(self, shadow: list[str], champion: list[str]) -> None:
        self.compared += 1
        self.same += shadow == champion
        self.shadow_characters += sum(map(len, shadow))
        self.champion_characters += sum(map(len, champion))

    def wire(self) -> dict[str, JsonValue]:
        mean = self.compared or 1
        return {
            "compared": self.compared,
            "same_text": self.same / mean if self.compared else None,
            "characters": self.shadow_characters / mean if self.compared else None,
            "champion_characters": self.champion_characters / mean if self.compared else None,
        }


@dataclass
class Tally:
    """Of one shadow: how its requests ended, and how its greedy replies compare."""

    id: int
    outcomes: Counter[str] = field(default_factory=Counter)
    greedy: Agreement = field(default_factory=Agreement)


@dataclass(frozen=True)
class Mirrored:
    canary: Canary
    heard: Heard
    again: Again
    note: Callable[[Ending], None]
    offered: float = field(default_factory=time.monotonic)


class Shadows:
    """One mirrored request at a time, behind everybody's. What finds no room is dropped and counted, never waited for."""

    def __init__(self, models: ServedModels, engine: Engine, max_rows: int) -> None:
        self._models, self._engine, self._max_rows = models, engine, max_rows
        self._waiting: asyncio.Queue[Mirrored] = asyncio.Queue(MAX_WAITING)
        self._tallies: dict[str, Tally] = {}  # by name, of its latest shadow

    def offer(self, mirrored: Mirrored) -> None:
        try:
            self._waiting.put_nowait(mirrored)
        except asyncio.QueueFull:
            self._count(mirrored.canary, "dropped")

    async def run(self) -> None:
        """For ever, what was offered, in its order."""
        while True:
            mirrored = await self._waiting.get()
            try:
                await self._mirror(mirrored)
            except Exception:
                self._count(mirrored.canary, "failed")
                log.exception("A request could not be mirrored on %s", mirrored.canary.release)

    def wire(self, canary: Canary) -> dict[str, JsonValue]:
        tally = self._tally(canary)
        return {"waiting": self._waiting.qsize(), "outcomes": dict(sorted(tally.outcomes.items())), "greedy": tally.greedy.wire()}

    async def _mirror(self, mirrored: Mirrored) -> None:
        canary = mirrored.canary
        while not self._has_room:
            if time.monotonic() - mirrored.offered > PATIENCE_S:
                self._count(canary, "dropped")
                return
            await asyncio.sleep(_POLL_S)
        now = self._models.canary(canary.release.name)
        if now is None or now.id != canary.id or not self._models.holds(canary.release):
            return
        try:
            lease = await self._models.lease(str(canary.release))
        except ApiError:
            self._count(canary, "dropped")
            return
        try:
            if lease.served.router is not None:  # it writes nothing itself
                self._count(canary, "refused")
                return
            await self._write(mirrored, lease)
        finally:
            lease.release()

    async def _write(self, mirrored: Mirrored, lease: Lease) -> None:
        canary = mirrored.canary
        try:
            copy = _Copy(mirrored.again(lease))
        except (ApiError, ValueError):  # too long beside what this release adds, say
            self._count(canary, "refused")
            return
        work = asyncio.create_task(copy.write())
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                if not work.done() and self._engine.stats().waiting:
                    self._count(canary, "displaced")
                    return
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        ending = work.result()
        self._count(canary, "failed" if ending.failed else ("refused" if ending.is_clients else "completed"))
        if ending.is_clients:
            return
        mirrored.note(ending)
        if not ending.failed and mirrored.heard.is_greedy and all(map(_is_greedy, copy.requests)):
            self._tally(canary).greedy.add(copy.texts, mirrored.heard.texts)

    @property
    def _has_room(self) -> bool:
        stats = self._engine.stats()
        return not stats.waiting and stats.running <= self._max_rows * MAX_BUSY

    def _count(self, canary: Canary, outcome: str) -> None:
        self._tally(canary).outcomes[outcome] += 1
        meters.MIRRORED.labels(str(canary.release), outcome).inc()

    def _tally(self, canary: Canary) -> Tally:
        known = self._tallies.get(canary.release.name)
        if known is None or known.id < canary.id:
            known = self._tallies[canary.release.name] = Tally(canary.id)
        return known if known.id == canary.id else Tally(canary.id)


class _Copy:
    """A mirrored request's rows, outside the counts of what clients asked for."""

    def __init__(self, writing: Writing) -> None:
        self._writing, self.requests = writing, writing.requests
        self.texts = [""] * len(self.requests)
        self._tokens = 0

    async def write(self) -> Ending:
        began = time.perf_counter()
        failed = is_clients = False
        first: float | None = None

        async def row(place: int, request: GenerationRequest) -> None:
            nonlocal first
            stream = self._writing.generate(request)
            async with closed_at_the_end(stream):
                async for delta in stream:
                    self.texts[place] += delta.text
                    if delta.token_id is not None:
                        first = time.perf_counter() - began if first is None else first
                        self._tokens += 1

        try:
            async with asyncio.timeout(self._writing.allowed.left_s), asyncio.TaskGroup() as rows:
                for place, request in enumerate(self.requests):
                    rows.create_task(row(place, request))
        except* (EngineError, AdapterError) as group:
            is_clients = all(_is_refusal(error, self._writing.model) for error in group.exceptions)
            failed = not is_clients
        except* Exception as group:
            log.error("A mirrored request on %s failed", self._writing.model, exc_info=group)
            failed = True
        per_choice, took = self._tokens / max(len(self.requests), 1), time.perf_counter() - began
        token_s = (took - first) / (per_choice - 1) if first is not None and per_choice > 1 else None
        return Ending(failed, is_clients, self._tokens, first, token_s)


def _is_refusal(error: BaseException, model: str) -> bool:
    return isinstance(error, EngineError | AdapterError) and from_engine(error, model).status < 500


def _is_greedy(request: GenerationRequest) -> bool:
    policy = request.policy.temperature if request.policy is not None else 0.0
    return (policy if request.temperature is None else request.temperature) == 0
