"""Branches for one reply: which of them wins, what a policy leaves of them, and that they run as rows of the engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import torch

from adapters.backbone import TESTBED, Backbone
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.cot_decoding import Branch, CoTDecoding, Decoded
from engine.engine import Completion, Delta, GenerationRequest
from engine.errors import EngineError
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine
from evaluation.task import comparable, direct_prompt
from evaluation.tasks import TASKS
from service.branching import Branching
from service.writing import together

DECODED = Decoded(
    (
        Branch("", "0", 0.6),
        Branch("a\nb\n", "7", 0.5),
        Branch("a\nc\n", "7.", 0.4),
        Branch("a\nb\nc\nd\n", "9", 0.8),
        Branch("a\nb\nc\nd\ne\n", "8", 0.1),
        Branch("", "", math.nan),
    )
)


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    engine = TorchEngine(Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32), max_rows=4)
    yield engine
    engine.close()


@pytest.fixture
def request_(engine: TorchEngine) -> GenerationRequest:
    (example,) = TASKS["alchemy"].examples("search", 1)
    return GenerationRequest(engine.backbone.chat_ids(direct_prompt(example)), None, 60)


def read(stream: AsyncIterator[Delta]) -> list[Delta]:
    async def all_of_it() -> list[Delta]:
        return [delta async for delta in stream]

    return asyncio.run(all_of_it())


def test_the_vote_decides_which_branch_is_sent() -> None:
    assert Branches(vote="margin").winner(DECODED, comparable) == DECODED.branches[1]
    assert Branches(vote="majority").winner(DECODED, comparable) == DECODED.branches[1]
    assert Branches(vote="best").winner(DECODED, comparable) == DECODED.branches[3]
    # One bin: that of two and three lines, where both say 7.
    assert Branches(vote="length", num_bins=1).winner(DECODED, comparable) == DECODED.branches[1]


def test_many_unsure_branches_outvote_a_sure_one_by_majority_and_not_by_margin() -> None:
    split = Decoded((Branch("", "1", 0.9), Branch("", "2", 0.3), Branch("", "2", 0.2)))
    assert Branches(vote="majority").winner(split, comparable) == split.branches[1]
    assert Branches(vote="margin").winner(split, comparable) == split.branches[0]


def test_without_an_answer_the_greedy_branch_is_sent() -> None:
    mute = Decoded((Branch("so", "", math.nan), Branch("or", "", math.nan)))
    assert all(Branches(vote=vote).winner(mute, str) is mute.greedy for vote in ("margin", "best", "length"))  # type: ignore[arg-type]


def test_branches_stay_within_the_budget_and_the_reply(engine: TorchEngine) -> None:
    asked, backbone = Branches(num_branches=3), engine.backbone
    assert asked.within(backbone, DecodingPolicy(), 1000) == CoTDecoding(3, 96, 32)
    assert asked.within(backbone, DecodingPolicy(), 60) == CoTDecoding(3, 60 - 32 - 3, 32)
    capped = DecodingPolicy(budget=Budget(max_trace_tokens=20, max_answer_tokens=8))
    assert asked.within(backbone, capped, 1000) == CoTDecoding(3, 20, 8)
    with pytest.raises(ValueError, match="35 for its answer, but 30 are allowed"):
        asked.within(backbone, DecodingPolicy(), 30)
    with pytest.raises(ValueError, match="traces end with '</think>'"):
        asked.within(backbone, DecodingPolicy(trace_end="</think>"), 1000)


def test_streamed_branches_send_what_branches_in_one_call_find(engine: TorchEngine, request_: GenerationRequest) -> None:
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=15))
    asked = Branches(num_branches=6)
    decoded = CoTDecoding(6, 15).complete(engine, engine.backbone, [request_])[0]
    branching = Branching.of(engine.generate, engine.backbone, asked, policy, 60)
    deltas = read(branching.generate(request_))
    assert "".join(delta.text for delta in deltas) == asked.winner(decoded, comparable).text
    assert deltas[-1].finish_reason == "stop" and deltas[-1].token_id is None
    # Every branch's tokens are paid for.
    assert sum(delta.token_id is not None for delta in deltas) > 6 * len(engine.backbone.encode(deltas[-1].text)) / 2


def test_sampled_branches_are_others_and_the_same_again_under_a_seed(backbone: Backbone) -> None:
    engine, drawing = TorchEngine(backbone), CoTDecoding(6, 15, temperature=1.0)
    request_ = GenerationRequest(backbone.chat_ids("What comes after 3?"))

    def traces(seed: int | None) -> list[str]:
        (decoded,) = drawing.complete(engine, backbone, [replace(request_, seed=seed)])
        return [branch.trace for branch in decoded.branches]

    assert traces(1) == traces(1) != traces(2)
    assert len(set(traces(1))) > 1 and len(traces(1)) == 6
    (greedy,) = CoTDecoding(2, 15).complete(engine, backbone, [request_])
    (cool,) = CoTDecoding(3, 15, temperature=1e-6).complete(engine, backbone, [request_])
    assert {branch.text for branch in cool.branches} == {greedy.greedy.text}
    engine.close()


def test_the_answers_of_sampled_branches_are_greedy(engine: TorchEngine, request_: GenerationRequest) -> None:
    rounds = CoTDecoding(3, 15, temperature=1.0).rounds(engine.backbone, [replace(request_, temperature=0.7)])
    traces = next(rounds)
    assert [asked.temperature for asked in traces] == [1.0] * 3
    assert [asked.temperature for asked in rounds.send(engine.complete(traces))] == [0.0] * 3


def test_a_reply_whose_answer_was_cut_ends_by_length(engine: TorchEngine, request_: GenerationRequest) -> None:
    asked = Branches(num_branches=2, max_trace_tokens=8, max_answer_tokens=1)
    deltas = read(Branching.of(engine.generate, engine.backbone, asked, DecodingPolicy(), 60).generate(request_))
    assert deltas[-1].finish_reason == "length"


def test_a_reader_that_leaves_frees_the_rows_of_all_branches(engine: TorchEngine, request_: GenerationRequest) -> None:
    branching = Branching.of(engine.generate, engine.backbone, Branches(num_branches=6), DecodingPolicy(), 60)

    async def leave() -> None:
        reading = asyncio.create_task(anext(aiter(branching.generate(replace(request_, max_new_tokens=60)))))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for _ in range(200):
            if not engine.stats().running + engine.stats().waiting:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(engine.stats())

    asyncio.run(leave())


@pytest.mark.parametrize("fails", [True, False])
def test_rows_that_were_asked_together_end_with_the_first_that_fails_or_with_their_reader(fails: bool) -> None:
    async def rows(request: GenerationRequest) -> AsyncIterator[Delta]:
        try:
            yield Delta("", 1, -1.0)
            if fails and request.seed == 1:
                raise EngineError("broken")
            await asyncio.Event().wait()
        finally:
            closed.append(request.seed)

    async def left() -> None:
        reading = asyncio.create_task(together(rows, [GenerationRequest((1,), seed=seed) for seed in range(3)]))
        await asyncio.sleep(0.01)
        reading.cancel()
        (ended,) = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(ended, EngineError if fails else asyncio.CancelledError)
        await asyncio.sleep(0.01)
        assert sorted(closed) == [0, 1, 2]

    closed: list[int | None] = []
    asyncio.run(left())


def test_a_stream_without_an_end_is_no_completion() -> None:
    with pytest.raises(EngineError, match="stopped after 1 deltas"):
        Completion.of(GenerationRequest((1,)), [Delta("x", 3, -1.0)])
