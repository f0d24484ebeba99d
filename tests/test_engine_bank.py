"""The engine's bank under requests: rows wait for room, nothing diverged spreads, and no order of events mixes adapters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fitted import fitted, fitted_lora, fitted_softcot, random_steering
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.backbone import Backbone
from adapters.errors import AdapterError
from adapters.lora import LoRA, LoRASpec
from engine.bank import BankLimits
from engine.engine import Completion, Continuation, GenerationRequest
from engine.errors import EngineError, NotFinite
from engine.profile import Profile
from engine.torch_engine import TorchEngine

TEXTS = ("Add 5, then take away 3.", "Diagnosis: Cholera", "Think step by step", "Options: skin diseases; ear diseases")


def asked(backbone: Backbone, profile: str | None, place: int = 0, count: int = 6) -> GenerationRequest:
    return GenerationRequest(backbone.chat_ids(TEXTS[place % len(TEXTS)]), profile, max_new_tokens=count)


def streamed(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[Completion | BaseException]:
    """All at the same time through the step loop."""

    async def one(request: GenerationRequest) -> Completion:
        return Completion.of(request, [delta async for delta in engine.generate(request)])

    async def everything() -> list[Completion | BaseException]:
        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    return asyncio.run(everything())


def assert_same(one: Completion | BaseException, two: Completion) -> None:
    assert isinstance(one, Completion), one
    assert one.token_ids == two.token_ids
    torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-4, rtol=1e-4)


def test_rows_whose_adapter_has_no_room_wait_and_those_behind_them_run(backbone: Backbone) -> None:
    small = TorchEngine(backbone, max_rows=8, bank=BankLimits(adapters=2))
    large = TorchEngine(backbone, max_rows=8)
    for engine in (small, large):
        for number in range(5):
            engine.load(str(number), Profile((fitted_lora(backbone, number, rank=2 + 3 * number),)))
    names = ("0", "1", "2", "0", None, "3", "4", "1", "2", None)
    requests = [asked(backbone, name, place, 3 + place) for place, name in enumerate(names)]
    wanted = large.complete(requests)
    for found in (small.complete(requests), streamed(small, requests)):
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    stats = small.stats().bank
    assert (stats.resident, stats.loaded) == (2, 5) and stats.evictions and stats.hits
    assert not large.stats().bank.evictions and large.stats().bank.resident == 5
    small.close()
    large.close()


def test_base_rows_beside_adapters_are_bit_identical_to_an_engine_without_any(backbone: Backbone) -> None:
    plain, mixed = TorchEngine(backbone), TorchEngine(backbone)
    for number in range(3):
        mixed.load(str(number), Profile((fitted_lora(backbone, number),)))
    found = mixed.complete([asked(backbone, name, place) for place, name in enumerate([None, "0", "1", "2"])])
    alone = plain.complete([asked(backbone, None, place) for place in range(4)])
    assert found[0] == alone[0]
    assert [one.token_ids for one in found[1:]] != [one.token_ids for one in alone[1:]]
    plain.close()
    mixed.close()


def test_an_adapter_that_diverged_fails_its_own_requests_and_the_next_ones_are_right(backbone: Backbone) -> None:
    # Finite in every number and infinite in what it computes: a gate that looks at weights cannot see it.
    engine = TorchEngine(backbone, max_rows=4)
    engine.load("tame", Profile((fitted_lora(backbone, 1),)))
    wanted = engine.complete([asked(backbone, name, place) for place, name in enumerate((None, "tame"))])
    broken = fitted_lora(backbone, 9)
    for tensor in broken.tensors().values():
        tensor.fill_(1e30)
    engine.load("wild", Profile((broken,)))
    for _ in range(3):
        requests = [asked(backbone, name, place) for place, name in enumerate((None, "tame", "wild", "wild"))]
        base, tame, *failed = streamed(engine, requests)
        assert_same(base, wanted[0])
        assert_same(tame, wanted[1])
        assert all(isinstance(one, NotFinite) and "'wild'" in str(one) for one in failed)
    engine.unload("wild")
    for found, once in zip(streamed(engine, requests[:2]), wanted, strict=True):
        assert_same(found, once)
    engine.close()


def test_what_does_not_fit_is_refused_at_load_and_the_engine_goes_on(backbone: Backbone) -> None:
    engine = TorchEngine(backbone, bank=BankLimits(bytes=60_000))
    engine.load("small", Profile((fitted_lora(backbone, 1, rank=2),)))
    wanted = engine.complete([asked(backbone, "small")])
    with pytest.raises(AdapterError, match=r"stands in the bank whole, in at most 0.0572 MiB, .*fit a lower rank"):
        engine.load("large", Profile((fitted_lora(backbone, 2, rank=64),)))
    assert engine.loaded == ("small",)
    assert engine.complete([asked(backbone, "small")]) == wanted
    engine.close()


def test_scoring_under_an_adapter_that_has_no_room_leaves_running_rows_right(backbone: Backbone) -> None:
    engine = TorchEngine(backbone, bank=BankLimits(adapters=1))
    for name in ("one", "two"):
        engine.load(name, Profile((fitted_lora(backbone, len(name) + ord(name[0])),)))
    wanted = engine.complete([asked(backbone, "one", 0, 30)])[0]
    continuation = Continuation(backbone.chat_ids(TEXTS[0]), tuple(backbone.encode(" 14")))
    scored = engine.score([continuation], "two")

    async def both() -> Completion:
        deltas, request = [], asked(backbone, "one", 0, 30)
        async for delta in engine.generate(request):
            deltas.append(delta)
            assert await asyncio.to_thread(engine.score, [continuation], "two") == scored
        return Completion.of(request, deltas)

    assert_same(asyncio.run(both()), wanted)
    engine.close()


def test_any_alternation_of_loads_unloads_and_requests_gives_each_row_its_own_adapter(backbone: Backbone) -> None:
    """Slots are reused all the time: as many adapters as fit are a third of those loaded."""
    made = {
        **{f"lora{number}": Profile((fitted_lora(backbone, number, rank=1 + 4 * number),)) for number in range(6)},
        "attention": Profile((fitted(LoRA(LoRASpec(rank=4, target_modules="attention")), backbone, 19),)),
        "steered": Profile((fitted_lora(backbone, 20), random_steering(backbone))),
        "soft": Profile((fitted_lora(backbone, 21), fitted_softcot(backbone, 22))),
    }
    solo = TorchEngine(backbone, max_rows=1)
    wanted: dict[tuple[str | None, int], Completion] = {}
    for name, profile in made.items():
        solo.load(name, profile)
    for known in (None, *made):
        for place in range(len(TEXTS)):
            wanted[known, place] = solo.complete([asked(backbone, known, place)])[0]
    solo.close()

    engine, chance = TorchEngine(backbone, max_rows=6, bank=BankLimits(adapters=3)), random.Random(0)
    engine.load("lora0", made["lora0"])
    gone = Counter[str]()  # an unloaded name takes its counts with it

    async def request(name: str | None, place: int) -> None:
        sent = asked(backbone, name, place)
        deltas = [delta async for delta in engine.generate(sent)]
        assert_same(Completion.of(sent, deltas), wanted[name, place])

    async def soak() -> None:
        running: list[asyncio.Task[None]] = []
        for _ in range(100):
            name = chance.choice([*made])
            if name not in engine.loaded:
                await asyncio.to_thread(engine.load, name, made[name])
            elif chance.random() < 0.3:
                counted = engine.stats().bank
                try:
                    await asyncio.to_thread(engine.unload, name)
                except EngineError as error:
                    assert "in flight" in str(error)
                else:
                    gone.update(hits=counted.hits.get(name, 0), evictions=counted.evictions.get(name, 0))
            running.append(asyncio.create_task(request(chance.choice([None, *engine.loaded]), chance.randrange(len(TEXTS)))))
            await asyncio.sleep(0)
            if len(running) > 12:
                await running.pop(0)
        await asyncio.gather(*running)

    asyncio.run(soak())
    stats = engine.stats().bank
    evictions, hits = (sum(found.values()) for found in (stats.evictions, stats.hits))
    assert evictions + gone["evictions"] > 20 and hits + gone["hits"] > 20 and stats.resident <= 3
    engine.close()
    assert engine.stats().bank.resident == engine.stats().bank.loaded == 0


class Products(TorchDispatchMode):
    """How often each operation that multiplies matrices was called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        if "mm" in name or "linear" in name or "attention" in name:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_multiplies_as_often_for_eight_adapters_as_for_one(backbone: Backbone) -> None:
    """So that its cost does not grow with how many are different: PEFT's mixed batches loop over them."""
    engine = TorchEngine(backbone, max_rows=8)
    for number in range(8):
        engine.load(str(number), Profile((fitted_lora(backbone, number),)))

    def products(names: Sequence[str | None]) -> Counter[str]:
        requests = [GenerationRequest(backbone.chat_ids(TEXTS[0]), name, 6, ignore_end=True) for name in names]
        engine.complete(requests)  # what is brought into the bank once
        with Products() as counted:
            engine.complete(requests)
        return counted.counts

    none, one, eight = products([None] * 8), products(["0"] * 8), products([str(number) for number in range(8)])
    engine.close()
    assert eight.total() == one.total() > none.total() > 0
