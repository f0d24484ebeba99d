"""Prompts that are read in chunks beside rows that write: the same texts, and no row waits for another's prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from fitted import fitted_lora, fitted_softcot, random_steering
from stepped import Stepped

from adapters.backbone import Backbone
from adapters.routing import Routing, RoutingSpec
from engine.engine import Completion, GenerationRequest
from engine.profile import Profile
from engine.reading import plan
from engine.row import Row
from engine.torch_engine import TorchEngine

WORDS = "Take the number 7, then add 3, then take away 2, then times 4. What number do you get? "
CHUNK = 24
KINDS = (None, "lora", "other", "soft", "both", "steered", "routed", "thoughts")


def drawn_routing(backbone: Backbone) -> Routing:
    generator = torch.Generator().manual_seed(7)
    directions_KH, encoder_KH = (torch.randn(3, backbone.hidden_size, generator=generator) for _ in range(2))
    spec = RoutingSpec(layer=0, read_layer=1)
    return Routing(spec, backbone.fingerprint, encoder_KH, torch.zeros(3), directions_KH, torch.full((3,), 2.0))


def loaded(backbone: Backbone, **limits: int) -> TorchEngine:
    engine = TorchEngine(backbone, **limits)  # type: ignore[arg-type]
    lora = fitted_lora(backbone, 1)
    engine.load("lora", Profile((lora,)))
    engine.load("other", Profile((fitted_lora(backbone, 2, rank=2),)))
    engine.load("soft", Profile((fitted_softcot(backbone, 3),)))
    engine.load("both", Profile((fitted_lora(backbone, 4), fitted_softcot(backbone, 5))))
    engine.load("steered", Profile((random_steering(backbone),)))
    engine.load("routed", Profile((lora,), routing=drawn_routing(backbone)))
    # Its oracle's prompt is longer than the row's own.
    engine.load("thoughts", Profile((fitted_softcot(backbone, 6),), routing=drawn_routing(backbone)))
    return engine


@pytest.fixture
def chunked(backbone: Backbone) -> Iterator[Stepped]:
    engine = loaded(backbone, prefill_chunk_tokens=CHUNK, max_rows=6)
    yield Stepped(engine)
    engine.close()


@pytest.fixture
def whole(backbone: Backbone) -> Iterator[TorchEngine]:
    engine = loaded(backbone)
    yield engine
    engine.close()


def prompt_of(backbone: Backbone, count: int, place: int = 0) -> tuple[int, ...]:
    """So many tokens; those of other places begin otherwise."""
    ids = backbone.chat_ids(f"{place}. " + WORDS * 12)
    assert len(ids) >= count
    return (*ids[: count - 8], *ids[-8:])


def assert_same(one: Completion, two: Completion) -> None:
    assert (one.token_ids, one.text, one.finish_reason) == (two.token_ids, two.text, two.finish_reason)
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("profile", KINDS)
def test_a_prompt_in_chunks_is_read_as_it_is_whole(chunked: Stepped, whole: TorchEngine, profile: str | None) -> None:
    ids = prompt_of(whole.backbone, 150)
    asked = GenerationRequest(ids, profile, 8)
    (row,) = chunked.submit(asked)
    chunked.step(3)
    assert 0 < row.read < len(ids) and not row.token_ids
    chunked.run()
    (expected,) = whole.complete([asked])
    assert_same(row.completion(), expected)


def test_a_reply_that_was_begun_over_several_chunks_goes_on_as_it_would_have(chunked: Stepped, whole: TorchEngine) -> None:
    # A routing sums up the states of the sentence that is open: they come from more than one chunk.
    asked = GenerationRequest(prompt_of(whole.backbone, 40), "routed", 6, begun_ids=prompt_of(whole.backbone, 60, 1))
    assert_same(chunked.write([asked])[0], whole.complete([asked])[0])


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_come_go_and_hang_up_at_random_write_what_each_writes_alone(
    chunked: Stepped, whole: TorchEngine, seed: int
) -> None:
    draw = random.Random(seed)
    lengths = [12, 30, 31, 49, 80, 130, 200]
    asked = [
        GenerationRequest(
            prompt_of(whole.backbone, draw.choice(lengths), draw.randrange(3)),
            draw.choice(KINDS),
            draw.randrange(1, 14),
            temperature=draw.choice([0.0, 0.8]),
            seed=place,
            priority=draw.randrange(2),
        )
        for place in range(14)
    ]
    left = list(asked)
    while left or chunked.engine._scheduler.is_busy:
        for _ in range(draw.randrange(3)):
            if left:
                chunked.submit(left.pop(0))
        if chunked.rows and draw.random() < 0.1:
            draw.choice(chunked.rows).cancelled = True
        chunked.step()
    kept = [(request, row) for request, row in zip(asked, chunked.rows, strict=True) if row.finish_reason != "cancelled"]
    assert len(kept) > 4
    for request, row in kept:
        assert_same(row.completion(), whole.complete([request])[0])


def test_rows_that_write_get_a_token_a_step_while_a_long_prompt_is_read(chunked: Stepped, backbone: Backbone) -> None:
    (writer,) = chunked.submit(GenerationRequest(prompt_of(backbone, 20), "lora", 60, temperature=3.0))
    chunked.step()
    (reader,) = chunked.submit(GenerationRequest(prompt_of(backbone, 200), None, 4))
    for number in range(1, 8):
        before = len(writer.token_ids)
        chunked.step()
        assert len(writer.token_ids) == before + 1
        assert reader.read == number * CHUNK


def test_a_short_prompt_does_not_wait_for_a_long_one_to_be_read(chunked: Stepped, backbone: Backbone) -> None:
    long, short = chunked.submit(
        GenerationRequest(prompt_of(backbone, 300), None, 4), GenerationRequest(prompt_of(backbone, 10, 1), None, 40)
    )
    chunked.step()
    assert short.token_ids and long.read == CHUNK // 2


def test_completions_of_one_prompt_read_it_once_in_chunks(chunked: Stepped, whole: TorchEngine) -> None:
    ids = prompt_of(whole.backbone, 100)
    asked = [GenerationRequest(ids, "lora", 6, temperature=1.0, seed=seed) for seed in range(4)]
    together = chunked.write(asked)
    assert chunked.engine.stats().prompt_tokens == len(ids)
    for request, done in zip(asked, together, strict=True):
        assert_same(done, whole.complete([request])[0])


def rows_of_lengths(stepped: Stepped, *lengths: int, profile: str | None = None) -> list[Row]:
    backbone = stepped.engine.backbone
    return [stepped.engine._row(GenerationRequest(prompt_of(backbone, n, i), profile, 4), 0) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("budget", [1, 16, 24, 64, 256])
@pytest.mark.parametrize("profile", [None, "routed", "thoughts"])
def test_a_plan_is_within_its_budget_and_always_goes_on(chunked: Stepped, budget: int, profile: str | None) -> None:
    draw = random.Random(budget)
    for _ in range(20):
        rows = rows_of_lengths(chunked, *(draw.randrange(9, 200) for _ in range(draw.randrange(1, 6))), profile=profile)
        while rows:
            chunks = plan(rows, budget)
            assert chunks and all(chunk.count > 0 for chunk in chunks)
            of_first = [chunk for chunk in chunks if chunk.seats[0].row is rows[0]]
            area = len(chunks) * max(chunk.count for chunk in chunks)
            assert area <= budget or chunks == of_first
            for chunk in chunks:
                for seat in chunk.seats:
                    seat.read = chunk.end
            ends = [[seat.to_read == 0 for seat in row.seats] for row in rows]
            assert all(len(set(each)) == 1 for each in ends)
            rows = [row for row, each in zip(rows, ends, strict=True) if not each[0]]
