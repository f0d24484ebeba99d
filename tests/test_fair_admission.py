"""Admission: what may wait, whose turn it is, and what leaves the line. No clock and no engine: the order is the fact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from engine.engine import Delta, GenerationRequest, Journey
from service.admission import Admission, Bounds, Ticket
from service.caller import ANYONE, Caller, Quota, Scope
from service.errors import ApiError
from service.quota import Quotas
from service.writing import Generate


class Desk:
    """An engine of which a test says when a row ends; `began` is the order of joining."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.waits = False

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        name = request.stop[0]
        self.began.append(name)
        if self.waits:
            await self._ends.setdefault(name, asyncio.Event()).wait()
        yield Delta("", 1, -0.1)
        yield Delta("", 1, -0.1, "stop")

    def end(self, name: str) -> None:
        self._ends.setdefault(name, asyncio.Event()).set()


def key(name: str, **quota: int) -> Caller:
    return Caller(name, name, frozenset({Scope.COMPLETE}), Quota.model_validate(quota))


def row(name: str, tokens: int = 10) -> GenerationRequest:
    """Two tokens of prompt; `tokens` in all."""
    return GenerationRequest((1, 2), stop=(name,), max_new_tokens=tokens - 2)


def of(rows: int = 1, queued_rows: int = 100, queued_tokens: int = 10**6) -> Admission:
    return Admission(Bounds(rows, queued_rows, queued_tokens), Quotas())


def entered(admission: Admission, caller: Caller, *requests: GenerationRequest, each: int = 1) -> Ticket:
    ticket = admission.ticket(caller, lambda _: each)
    ticket.enter(requests)
    return ticket


async def whole(generate: Generate, request: GenerationRequest) -> int:
    return len([delta async for delta in generate(request)])


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_flood_of_one_key_does_not_move_anothers_wait() -> None:
    async def order(num_flood: int) -> list[str]:
        admission, desk = of(rows=1, queued_rows=1000), Desk()
        desk.waits = True
        flood = [(key("a"), row(f"a{number}", 200)) for number in range(num_flood)]
        asked = [*flood, (key("b"), row("b0", 200)), (key("b"), row("b1", 200))]
        tickets = [(entered(admission, caller, request), request) for caller, request in asked]
        tasks = [asyncio.create_task(whole(ticket.through(desk.generate), request)) for ticket, request in tickets]
        await settled()
        for place in range(len(asked)):
            desk.end(desk.began[place])
            await settled()
        await asyncio.gather(*tasks)
        return desk.began

    few, many = asyncio.run(order(5)), asyncio.run(order(90))
    assert [few.index("b0"), few.index("b1")] == [many.index("b0"), many.index("b1")]
    assert few.index("b1") <= 6


def test_the_engine_gets_no_more_rows_than_it_runs() -> None:
    async def scenario() -> None:
        admission, desk = of(rows=2), Desk()
        desk.waits = True
        names = ["1", "2", "3"]
        tickets = {name: entered(admission, ANYONE, row(name)) for name in names}
        tasks = [asyncio.create_task(whole(tickets[name].through(desk.generate), row(name))) for name in names]
        await settled()
        assert desk.began == ["1", "2"] and admission.seated == 2
        desk.end("1")
        await settled()
        assert desk.began == ["1", "2", "3"]
        desk.end("2")
        desk.end("3")
        assert await asyncio.gather(*tasks) == [2, 2, 2]
        assert (admission.seated, admission.queued.rows, admission.queued.tokens) == (0, 0, 0)

    asyncio.run(scenario())


async def one_runs_and_two_wait() -> tuple[Admission, Desk, dict[str, asyncio.Task[int]]]:
    admission, desk = of(rows=1), Desk()
    desk.waits = True
    tasks = {}
    for name in ("1", "2", "3"):
        ticket = entered(admission, ANYONE, row(name))
        tasks[name] = asyncio.create_task(whole(ticket.through(desk.generate), row(name)))
    await settled()
    return admission, desk, tasks


def test_a_row_of_smaller_priority_passes_those_that_wait() -> None:
    async def order() -> list[str]:
        admission, desk, tasks = await one_runs_and_two_wait()
        for name, priority in (("last", 1), ("first", -1)):
            asked = replace(row(name), priority=priority)
            tasks[name] = asyncio.create_task(whole(entered(admission, ANYONE, asked).through(desk.generate), asked))
        await settled()
        for name in ("1", "first", "2", "3", "last"):
            desk.end(name)
        await asyncio.gather(*tasks.values())
        return desk.began

    assert asyncio.run(order()) == ["1", "first", "2", "3", "last"]


def test_who_stops_waiting_leaves_the_line_and_takes_no_seat() -> None:
    async def scenario() -> None:
        admission, desk, tasks = await one_runs_and_two_wait()
        tasks["2"].cancel()
        await settled()
        assert admission.queued.rows == 1
        desk.end("1")
        await settled()
        assert desk.began == ["1", "3"]
        tasks["3"].cancel()
        await settled()
        assert (admission.seated, admission.queued.rows) == (0, 0)

    asyncio.run(scenario())


def test_beyond_the_bound_a_request_is_refused_at_once_with_a_time_to_come_back() -> None:
    admission = of(rows=1, queued_rows=2)
    for name in ("1", "2", "3"):
        entered(admission, ANYONE, row(name))
    began = time.perf_counter()
    with pytest.raises(ApiError) as caught:
        entered(admission, ANYONE, row("4"))
    assert time.perf_counter() - began < 0.05
    assert (caught.value.status, caught.value.code) == (429, "server_overloaded")
    assert int(caught.value.headers["retry-after"]) >= 1
    with pytest.raises(ApiError):
        admission.refuse_when_full(ANYONE)  # as the guard asks before it reads a body


def test_tokens_are_a_bound_of_their_own_but_an_empty_line_takes_any_request() -> None:
    admission = of(rows=1, queued_tokens=100)
    entered(admission, ANYONE, row("runs", 500))
    with pytest.raises(ApiError):
        entered(admission, ANYONE, row("waits", 10))
    quiet = of(rows=1, queued_tokens=100)
    entered(quiet, ANYONE, row("large", 5000))


def test_a_closed_ticket_makes_room_again() -> None:
    admission = of(rows=1, queued_rows=1)
    first, second = entered(admission, ANYONE, row("1")), entered(admission, ANYONE, row("2"))
    with pytest.raises(ApiError):
        entered(admission, ANYONE, row("3"))
    second.close()
    second.close()
    entered(admission, ANYONE, row("3"))
    first.close()


def test_a_key_that_floods_leaves_room_for_the_next() -> None:
    admission = of(rows=1, queued_rows=8)
    count = 0
    with pytest.raises(ApiError):
        for count in range(20):
            entered(admission, key("a"), row(f"a{count}"))
    assert 3 <= count <= 6
    for caller in (key("b"), key("c")):
        entered(admission, caller, row(caller.name))


def test_more_completions_than_could_ever_wait_are_no_matter_of_time() -> None:
    with pytest.raises(ApiError) as caught:
        entered(of(rows=2, queued_rows=2), ANYONE, *[row(str(number)) for number in range(5)])
    assert (caught.value.status, caught.value.code) == (400, "too_many_rows")
    entered(of(rows=2, queued_rows=2), ANYONE, *[row(str(number)) for number in range(4)])


def test_a_full_line_has_no_room_for_a_new_key_either() -> None:
    admission = of(rows=1, queued_rows=1)
    for name in ("runs", "waits"):
        entered(admission, key(name), row(name))
    with pytest.raises(ApiError, match="1 completions wait"):
        entered(admission, key("new"), row("new"))


def test_the_wait_that_is_told_follows_from_the_pace_of_the_last_half_minute() -> None:
    now = [0.0]
    admission = Admission(Bounds(1, 3, 10**6), Quotas(), lambda: now[0])

    async def one() -> None:
        ticket, desk = entered(admission, ANYONE, row("ended", 100)), Desk()
        await whole(ticket.through(desk.generate), row("ended", 100))
        ticket.close()

    def told() -> str:
        with pytest.raises(ApiError) as caught:
            admission.refuse_when_full(ANYONE)
        return caught.value.headers["retry-after"]

    asyncio.run(one())
    for name in ("1", "2", "3", "4"):
        entered(admission, ANYONE, row(name, 100))
    now[0] = 10.0  # 100 tokens in ten seconds, and half of 400 to go
    assert told() == "20"
    now[0] = 31.0  # nothing has ended for so long that nothing is known
    assert told() == "30"


def test_voters_take_as_many_seats_as_they_are() -> None:
    async def scenario() -> None:
        admission, desk = of(rows=4), Desk()
        desk.waits = True
        voting, single = entered(admission, ANYONE, row("v"), each=3), entered(admission, ANYONE, row("s"), each=2)
        tasks = [
            asyncio.create_task(whole(voting.through(desk.generate), row("v"))),
            asyncio.create_task(whole(single.through(desk.generate), row("s"))),
        ]
        await settled()
        assert (desk.began, admission.seated) == (["v"], 3)
        desk.end("v")
        await settled()
        assert (desk.began, admission.seated) == (["v", "s"], 2)
        desk.end("s")
        await asyncio.gather(*tasks)
        assert voting.used_tokens == 3 * (2 + 2)  # each voter reads the prompt, and writes about as much as the one that is told

    asyncio.run(scenario())


def test_more_voters_than_seats_take_all_of_them() -> None:
    async def scenario() -> None:
        admission, desk = of(rows=4), Desk()
        ticket = entered(admission, ANYONE, row("v"), each=6)
        assert await asyncio.wait_for(whole(ticket.through(desk.generate), row("v")), 5) == 2
        assert (admission.seated, admission.queued.rows) == (0, 0)

    asyncio.run(scenario())


def test_who_gives_up_at_the_head_of_the_line_lets_the_next_one_pass() -> None:
    async def scenario() -> None:
        admission, desk = of(rows=3), Desk()
        desk.waits = True
        tasks = {}
        for name, each in (("runs", 2), ("large", 3), ("small", 1)):
            ticket = entered(admission, ANYONE, row(name), each=each)
            tasks[name] = asyncio.create_task(whole(ticket.through(desk.generate), row(name)))
        await settled()
        assert desk.began == ["runs"]  # the next one needs more seats than are free, and nobody passes it
        tasks["large"].cancel()
        await settled()
        assert (desk.began, admission.seated) == (["runs", "small"], 3)
        desk.end("runs")
        desk.end("small")
        await asyncio.gather(tasks["runs"], tasks["small"])
        assert admission.seated == 0

    asyncio.run(scenario())


def test_a_seat_that_is_free_as_its_turn_gives_up_goes_to_the_one_behind() -> None:
    async def scenario() -> None:
        admission, desk, tasks = await one_runs_and_two_wait()
        desk.end("1")
        tasks["2"].cancel()  # in the same turn of the loop
        await settled()
        assert (desk.began, admission.seated, tasks["1"].result()) == (["1", "3"], 1, 2)
        desk.end("3")
        await tasks["3"]

    asyncio.run(scenario())


def test_rows_that_were_not_announced_take_nothing_from_what_waits() -> None:
    # Branches ask for more rows than were announced where a round follows a round.
    async def scenario() -> None:
        admission, desk = of(), Desk()
        branching = entered(admission, ANYONE, row("1"))
        entered(admission, ANYONE, row("waits"))
        for _ in range(3):
            await whole(branching.through(desk.generate), row("1"))
        branching.close()
        assert (admission.queued.rows, admission.queued.tokens) == (1, 10)

    asyncio.run(scenario())


def test_the_wait_for_a_seat_belongs_to_the_journey() -> None:
    now = [0.0]

    async def scenario() -> None:
        admission = Admission(Bounds(1, 10, 10**6), Quotas(), lambda: now[0])

        async def generate(request: GenerationRequest) -> AsyncIterator[Delta]:
            await asyncio.sleep(0)
            now[0] += 2.0
            yield Delta("", 1, -0.1, "stop", journey=Journey(waited_s=0.5, first_token_s=1.0))

        async def told(ticket: Ticket) -> Journey | None:
            (delta,) = [delta async for delta in ticket.through(generate)(row("1"))]
            return delta.journey

        first, second = entered(admission, ANYONE, row("1")), entered(admission, ANYONE, row("1"))
        journeys = await asyncio.gather(told(first), told(second))
        assert [(one.waited_s, one.first_token_s) for one in journeys if one is not None] == [(0.5, 1.0), (2.5, 3.0)]
        assert (first.waited_s, second.waited_s) == (0.0, 2.0)

    asyncio.run(scenario())


def test_a_key_pays_for_what_it_used_and_gets_the_rest_back() -> None:
    async def scenario() -> None:
        admission, desk = Admission(Bounds(1, 100, 10**6), Quotas(lambda: 0.0)), Desk()
        caller = key("a", tokens_per_min=1000)
        ticket = entered(admission, caller, row("1", 500), row("2", 400))
        assert admission.quotas.headers(caller)["x-ratelimit-remaining-tokens"] == "100"
        for name in ("1", "2"):
            await whole(ticket.through(desk.generate), row(name, 400))
        ticket.close()
        assert ticket.used_tokens == 2 * (2 + 2)
        assert admission.quotas.headers(caller)["x-ratelimit-remaining-tokens"] == "992"

    asyncio.run(scenario())


def test_voters_are_paid_for_each() -> None:
    async def scenario() -> None:
        ticket = entered(of(rows=4), ANYONE, row("v"), each=3)
        await whole(ticket.through(Desk().generate), row("v"))
        assert ticket.used_tokens == 3 * (2 + 2)  # prompt and reply of each set of thoughts, though one reply is told

    asyncio.run(scenario())


def test_a_refused_request_has_taken_nothing() -> None:
    admission = of()
    caller = key("a", tokens_per_min=100)
    with pytest.raises(ApiError):
        entered(admission, caller, row("1", 101))
    assert (admission.queued.rows, admission.quotas.headers(caller)["x-ratelimit-remaining-tokens"]) == (0, "100")


def test_closing_a_stream_in_the_middle_frees_its_seat() -> None:
    async def scenario() -> None:
        admission, desk = of(), Desk()
        stream = entered(admission, ANYONE, row("1")).through(desk.generate)(row("1"))
        async with aclosing(stream) as deltas:  # type: ignore[type-var]
            await anext(deltas)
            assert admission.seated == 1
        assert admission.seated == 0

    asyncio.run(scenario())
