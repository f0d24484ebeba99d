"""Names that are unloaded, clients that hang up, an engine that is closed: an answer or an error, never what is another's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from fitted import fitted_lora
from test_chunks import prompt_of

from adapters.adapter import Contribution, Prompt
from adapters.backbone import Backbone
from engine.engine import GenerationRequest
from engine.errors import EngineError
from engine.loop import StepLoop
from engine.profile import Profile
from engine.prompt_reading import PromptRead, ReadingQueue
from engine.torch_engine import TorchEngine


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        threading.Event().wait(0.001)


class Meddling:
    """An adapter of which somebody wants to be rid while a request for it is made."""

    def __init__(self, backbone: Backbone) -> None:
        self._inner = fitted_lora(backbone, 1)
        self.meddle: Callable[[], None] | None = None  # once

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()
        return prompt

    def contribution(self) -> Contribution:
        return self._inner.contribution()


def test_a_name_is_not_unloaded_between_a_request_and_its_row(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    adapter = Meddling(backbone)
    engine.load("lora", Profile((adapter,)))  # type: ignore[arg-type]
    request = GenerationRequest(prompt_of(backbone, 12), "lora", 8, temperature=0.0)
    (own,) = engine.complete([request])
    loop = engine._started_loop()
    unloading: list[Future[None]] = []

    with ThreadPoolExecutor(1) as pool:

        def meddle() -> None:
            unloading.append(pool.submit(engine.unload, "lora"))
            until(lambda: bool(loop._calls))  # it comes first of what waits for the loop, whatever the request does next

        adapter.meddle = meddle
        (found,) = engine.complete([request])
        with pytest.raises(EngineError, match="'lora' has 1 in flight"):
            unloading[0].result(5)
    assert found.token_ids == own.token_ids
    engine.close()


def test_calls_that_nobody_waits_for_any_more_do_not_keep_the_others_from_hearing_of_the_end(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    loop, running, held = engine._started_loop(), threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        held.wait(5)

    loop.call(hold)
    assert running.wait(5)
    left, waiting = loop.call(lambda: 1), loop.call(lambda: 2)
    assert left.cancel()
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: loop._closed)
    held.set()
    with pytest.raises(EngineError, match="closed before this call ran"):
        waiting.result(5)
    closing.join(5)


def test_a_prompt_that_nobody_waits_for_any_more_does_not_keep_an_engine_from_closing() -> None:
    running, held = threading.Event(), threading.Event()

    def read(requests: object) -> list[PromptRead]:
        running.set()
        held.wait(5)
        return [PromptRead((), None)]

    queue = ReadingQueue(read)
    asked = [(GenerationRequest((1,), None, 1), Future[PromptRead]()) for _ in range(3)]
    queue._waiting.append(asked[0])
    queue._thread.submit(queue._read_waiting)
    assert running.wait(5)
    queue._waiting.extend(asked[1:])
    asked[1][1].cancel()
    queue.close()
    held.set()
    with pytest.raises(CancelledError):
        asked[1][1].result(5)
    with pytest.raises(EngineError, match="closed while this prompt was read"):
        asked[2][1].result(5)


def test_an_engine_has_one_loop_however_many_ask_first(backbone: Backbone) -> None:
    engine, count = TorchEngine(backbone), 8
    gate = threading.Barrier(count)

    def begin() -> StepLoop:
        gate.wait(5)
        return engine._started_loop()

    with ThreadPoolExecutor(count) as pool:
        loops = {id(found.result(5)) for found in [pool.submit(begin) for _ in range(count)]}
    engine.close()
    assert len(loops) == 1
