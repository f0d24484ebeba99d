"""Rows that leave: hung up, past their deadline, or done; when they are gone, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from fitted import fitted_lora
from stepped import Clock, Stepped
from test_chunks import KINDS, loaded, prompt_of

from adapters.backbone import Backbone
from engine.engine import Delta, GenerationRequest
from engine.errors import EngineError, PromptTooLong, TimedOut, UnknownProfile
from engine.loop import StepLoop
from engine.oracle import Oracle
from engine.own_thread import in_own_thread
from engine.profile import Profile
from engine.row import Row
from engine.torch_engine import TorchEngine


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stepped(backbone: Backbone, clock: Clock) -> Iterator[Stepped]:
    engine = TorchEngine(backbone, max_rows=2, prefill_chunk_tokens=16, clock=clock)
    engine.load("lora", Profile((fitted_lora(backbone, 1),)))
    yield Stepped(engine)
    engine.close()


def places(stepped: Stepped) -> int:
    return len(stepped.engine._scheduler._seats)


def test_a_row_that_hung_up_is_gone_at_the_next_step_wherever_it_is(stepped: Stepped, backbone: Backbone) -> None:
    short, long = prompt_of(backbone, 12), prompt_of(backbone, 200, 1)
    writing, reading, waiting = stepped.submit(
        GenerationRequest(short, "lora", 300, temperature=3.0),
        GenerationRequest(long, None, 9),
        GenerationRequest(short, None, 9),
    )
    stepped.step(2)
    assert writing.token_ids and 0 < reading.read < 200 and waiting.joined_at is None and places(stepped) == 2
    for row in (writing, reading, waiting):
        row.cancelled = True
    written = len(writing.token_ids)
    stepped.step()
    assert [row.finish_reason for row in (writing, reading, waiting)] == ["cancelled"] * 3
    assert len(writing.token_ids) == written and places(stepped) == 0 and not stepped.engine._scheduler.is_busy


def test_the_place_of_who_hung_up_is_taken_in_the_same_step(stepped: Stepped, backbone: Backbone) -> None:
    asked = GenerationRequest(prompt_of(backbone, 12), None, 300, temperature=3.0)
    one, _, third = stepped.submit(asked, asked, asked)
    stepped.step()
    assert third.joined_at is None
    one.cancelled = True
    stepped.step()
    assert third.token_ids and places(stepped) == 2


def test_who_waits_past_the_deadline_ends_by_name_before_a_prompt_is_read(
    stepped: Stepped, backbone: Backbone, clock: Clock
) -> None:
    asked = GenerationRequest(prompt_of(backbone, 12), None, 300, temperature=3.0)
    stepped.submit(asked, asked)
    (late,) = stepped.submit(GenerationRequest(prompt_of(backbone, 40, 1), None, 4, deadline=5.0))
    stepped.step()
    clock.now = 5.0
    stepped.step()
    assert not late.is_finished
    read = stepped.engine.stats().prompt_tokens
    clock.now = 5.5
    stepped.step()
    with pytest.raises(TimedOut, match=r"5\.5 s after it came, when it waited\. Give it more time"):
        late.completion()
    stepped.run()
    assert stepped.engine.stats().prompt_tokens == read


def test_a_row_that_writes_past_its_deadline_ends_too(stepped: Stepped, backbone: Backbone, clock: Clock) -> None:
    (row,) = stepped.submit(GenerationRequest(prompt_of(backbone, 12), None, 300, temperature=3.0, deadline=5.0))
    stepped.step(3)
    clock.now = 6.0
    stepped.step()
    with pytest.raises(TimedOut, match=f"it had written {len(row.token_ids)} tokens"):
        row.completion()
    assert places(stepped) == 0


def test_a_request_tells_how_long_it_waited_and_when_its_first_token_came(
    stepped: Stepped, backbone: Backbone, clock: Clock
) -> None:
    first = GenerationRequest(prompt_of(backbone, 12), None, 2)
    stepped.submit(first, first)
    (row,) = stepped.submit(GenerationRequest(prompt_of(backbone, 40, 1), None, 2))
    while not row.is_finished:
        stepped.step()
        clock.now += 1.0
    journey = row.completion().journey
    assert journey is not None and journey.first_token_s is not None
    assert journey.waited_s == 1.0 and journey.first_token_s == 1.0 + 2.0  # 40 tokens are three chunks


def test_an_idle_engine_holds_no_cache_and_a_busy_one_gives_back_what_a_long_row_took(backbone: Backbone) -> None:
    stepped = Stepped(TorchEngine(backbone))
    ids = prompt_of(backbone, 10)
    stepped.submit(GenerationRequest(prompt_of(backbone, 400, 1), None, 2))
    (staying,) = stepped.submit(GenerationRequest(ids, None, 40, ignore_end=True))
    sizes = []
    while stepped.engine._scheduler.is_busy:
        stepped.step()
        sizes.append(stepped.engine._scheduler._cache.size)
    assert max(columns for _, columns in sizes) >= 400 and sizes[-2][0] * sizes[-2][1] <= 4 * 64
    assert sizes[-1] == (0, 0) and len(staying.token_ids) == 40


def test_the_cache_never_holds_more_than_its_bound(backbone: Backbone) -> None:
    stepped = Stepped(TorchEngine(backbone, max_cache_tokens=6 * 128))
    for place in range(12):
        stepped.submit(GenerationRequest(prompt_of(backbone, 9 + 14 * (place % 7), place), None, 2 + 11 * (place % 3)))
    while stepped.engine._scheduler.is_busy:
        stepped.step()
        rows, columns = stepped.engine._scheduler._cache.size
        assert rows * columns <= 6 * 128


def test_a_place_that_its_row_has_left_holds_zeros(backbone: Backbone) -> None:
    # A masked NaN or infinity would spoil a sum; what is finite today need not be tomorrow.
    stepped, draw = Stepped(loaded(backbone, max_rows=5, prefill_chunk_tokens=16)), random.Random(3)
    for place in range(20):
        ids = prompt_of(backbone, draw.randrange(9, 60), place)
        stepped.submit(GenerationRequest(ids, draw.choice(KINDS), draw.randrange(1, 9)))
    while stepped.engine._scheduler.is_busy:
        stepped.step()
        if draw.random() < 0.2:
            draw.choice(stepped.rows).cancelled = True
        scheduler = stepped.engine._scheduler
        held = [seat.held for seat in scheduler._seats]
        for keys, values in filter(None, scheduler._cache._stored):
            for place in range(len(keys)):
                free = held[place] if place < len(held) else 0
                assert not keys[place, :, free:].any() and not values[place, :, free:].any()
    stepped.engine.close()


def alive(*kinds: type) -> dict[str, int]:
    # Not isinstance: it asks some lazy modules for their class, and they answer with a warning.
    found = [type(one).__name__ for one in gc.get_objects() if type(one) in kinds]
    return {name: found.count(name) for name in set(found)}


async def stream(engine: TorchEngine, request: GenerationRequest, most: int | None = None) -> list[Delta]:
    """Of a request, or of its beginning: then it hangs up."""
    deltas: list[Delta] = []
    written = engine.generate(request)
    async for delta in written:
        deltas.append(delta)
        if len(deltas) == most:
            await written.aclose()  # type: ignore[attr-defined]
    return deltas


def mixed(engine: TorchEngine) -> list[GenerationRequest]:
    ids = [prompt_of(engine.backbone, 20 + 7 * place, place) for place in range(3)]
    return [GenerationRequest(ids[place % 3], profile, 5, seed=place) for place, profile in enumerate(KINDS * 2)]


def test_nothing_of_a_request_outlives_it_not_even_until_the_next_collection(backbone: Backbone) -> None:
    engine = loaded(backbone, max_rows=4, prefill_chunk_tokens=16, max_prefix_tokens=256)

    async def some() -> None:
        asked = mixed(engine)
        await asyncio.gather(*(stream(engine, request, 2 if place % 3 == 0 else None) for place, request in enumerate(asked)))
        with pytest.raises(UnknownProfile):
            await stream(engine, GenerationRequest((1, 2), "absent"))
        with pytest.raises(PromptTooLong):  # found out in the loop's thread
            await stream(engine, GenerationRequest((1, 2), None, 10_000))
        await asyncio.to_thread(engine.complete, asked)
        while engine.stats().running + engine.stats().waiting:
            await asyncio.sleep(0.001)

    asyncio.run(some())
    gc.collect()
    gc.disable()
    kinds = (Row, Oracle, Future, asyncio.Task, GenerationRequest)
    before = alive(*kinds)  # what other tests and modules still hold
    try:
        asyncio.run(some())
        # The loop's thread lets go of its last call a moment after that is done.
        threading.Event().wait(0.1)
        assert alive(*kinds) == before
    finally:
        gc.enable()
        engine.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(backbone: Backbone) -> None:
    engine = loaded(backbone, max_rows=4, prefill_chunk_tokens=16, max_prefix_tokens=256)

    async def some(count: int) -> None:
        for _ in range(count):
            asked = mixed(engine)
            await asyncio.gather(*(stream(engine, request, 2 if place % 3 == 0 else None) for place, request in enumerate(asked)))
            await asyncio.to_thread(engine.complete, asked)

    asyncio.run(some(4))
    gc.collect()
    tracemalloc.start()
    held = []
    for _ in range(2):
        asyncio.run(some(4))
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    engine.close()
    num_requests = 4 * 2 * len(KINDS) * 2
    assert held[1] - held[0] < 100 * num_requests, f"{(held[1] - held[0]) / num_requests:.0f} bytes a request stay"


def test_a_closed_engine_ends_what_waits_for_it(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)

    async def run() -> None:
        running = asyncio.create_task(stream(engine, GenerationRequest(prompt_of(backbone, 12), None, 400, ignore_end=True)))
        while not engine.stats().running:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="The engine was closed while this request ran"):
            await running

    asyncio.run(run())


def test_requests_that_come_together_join_in_one_step(backbone: Backbone) -> None:
    engine = TorchEngine(backbone, max_rows=8)
    scheduler, lock = engine._scheduler, threading.RLock()
    with lock:
        loop = StepLoop(scheduler, lock, num_threads=1)
        asked = [GenerationRequest(prompt_of(backbone, 12, place), None, 3) for place in range(6)]
        rows = [engine._row(request, 0) for request in asked]
        futures = [loop.call(lambda row=row: scheduler.submit(row)) for row in rows]  # type: ignore[misc]
    for future in futures:
        future.result(5)
    while scheduler.is_busy:
        threading.Event().wait(0.001)
    loop.close()
    assert scheduler.counts.steps <= 4


def test_the_thread_that_steps_keeps_its_number_of_threads_whatever_others_set(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine._num_threads = 2
    try:
        engine.start()
        torch.set_num_threads(1)
        assert engine._run(torch.get_num_threads) == 2
    finally:
        engine.close()
        torch.set_num_threads(1)


def test_work_in_a_thread_of_its_own_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    assert in_own_thread(lambda: threading.current_thread().name).startswith("graftline-once")
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)
    assert threading.active_count() == before
