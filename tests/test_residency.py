"""Which adapters stand in the bank: what a batch computes never depends on who came, left or waits on the shelf."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter import Contribution, LowRank
from adapters.errors import DamagedAdapter, RefusedAdapter
from engine.bank import AdapterBank, BankLimits

NUM_IN, NUM_OUT = 6, 5
PAGE_BYTES = (8 * (NUM_IN + NUM_OUT) + NUM_OUT) * 4


def update(seed: int, rank: int = 2) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, NUM_IN, generator=generator), torch.randn(NUM_OUT, rank, generator=generator))


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(NUM_IN, NUM_OUT)


def bank_of(layer: nn.Linear, limits: BankLimits, dtype: torch.dtype = torch.float32) -> AdapterBank:
    return AdapterBank({"up": layer}, dtype, limits=limits)


def run(layer: nn.Linear, bank: AdapterBank, x_BTI: Tensor, names: Sequence[str]) -> Tensor:
    with torch.inference_mode(), bank.rows(names):
        found: Tensor = layer(x_BTI)
    return found


def expected(layer: nn.Linear, x_BTI: Tensor, updates: Sequence[LowRank | None]) -> Tensor:
    plain = nn.functional.linear(x_BTI, layer.weight, layer.bias).detach()
    for row, low in enumerate(updates):
        if low is not None:
            plain[row] += x_BTI[row] @ low.a_RI.T @ low.b_OR.T
    return plain


@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_a_loaded_adapter_beyond_the_bound_comes_in_for_the_longest_idle(layer: nn.Linear, num_tokens: int) -> None:
    bank = bank_of(layer, BankLimits(adapters=2))
    for number in range(4):
        bank.load(str(number), Contribution({"up": update(number)}))
    for number in (0, 1, 2, 0, 3):
        x_BTI = torch.randn(2, num_tokens, NUM_IN)
        found = run(layer, bank, x_BTI, [str(number), ""])
        torch.testing.assert_close(found, expected(layer, x_BTI, [update(number), None]))
    stats = bank.stats()
    assert (stats.resident, stats.loaded) == (2, 4)
    assert stats.loads == {"0": 2, "1": 1, "2": 1, "3": 1} and stats.evictions == {"0": 1, "1": 1, "2": 1}
    assert stats.is_resident == {"0": True, "1": False, "2": False, "3": True}


def test_an_adapter_with_running_rows_does_not_leave(layer: nn.Linear) -> None:
    bank = bank_of(layer, BankLimits(adapters=2))
    for name in ("one", "two", "three"):
        bank.load(name, Contribution({"up": update(len(name))}))
    assert bank.admit("one", ()) and bank.admit("two", {"one"})
    assert not bank.admit("three", {"one", "two"})
    assert bank.admit("one", {"one", "two"}) and bank.admit("", {"one", "two"})
    assert bank.admit("three", {"one"})
    stats = bank.stats()
    assert stats.resident == 2 and stats.hits == {"one": 1}
    assert stats.loads == {"one": 1, "two": 1, "three": 1} and stats.evictions == {"two": 1}


def test_an_unloaded_name_leaves_no_counts(layer: nn.Linear) -> None:
    bank = bank_of(layer, BankLimits(adapters=1))
    for name in ("stays", "goes"):
        bank.load(name, Contribution({"up": update(len(name))}))
    for name in ("goes", "goes", "stays", "goes"):
        assert bank.admit(name, ())
    bank.unload("goes")
    stats = bank.stats()
    assert stats.hits == {} and stats.loads == {"stays": 1} and stats.evictions == {"stays": 1}


def test_the_bank_is_bounded_in_bytes_with_page_0(layer: nn.Linear) -> None:
    bank = bank_of(layer, BankLimits(bytes=3 * PAGE_BYTES))
    for name, rank in (("small", 8), ("large", 17), ("other", 3)):
        bank.load(name, Contribution({"up": update(1, rank)}))
    assert bank.admit("small", ()) and bank.admit("other", {"small"})
    assert not bank.admit("large", {"small"})
    assert bank.admit("large", ())
    assert bank.stats().resident == 1


def test_what_never_fits_is_refused_at_load_and_the_rest_is_served(layer: nn.Linear) -> None:
    bank = bank_of(layer, BankLimits(bytes=2 * PAGE_BYTES, loaded_bytes=4 * PAGE_BYTES))
    bank.load("one", Contribution({"up": update(1, 8)}))
    with pytest.raises(RefusedAdapter, match="at most 0.*with 'two' loaded 'two' takes 0.*Raise the limit, or fit a lower rank"):
        bank.load("two", Contribution({"up": update(1, 17)}))
    bank.load("two", Contribution({"up": update(2, 8)}))
    with pytest.raises(RefusedAdapter, match="Loaded profiles take at most .* but with 'three' it would be .* Unload another"):
        bank.load("three", Contribution({"up": update(3, 24)}))
    x_BTI = torch.randn(2, 1, NUM_IN)
    torch.testing.assert_close(run(layer, bank, x_BTI, ["two", "one"]), expected(layer, x_BTI, [update(2, 8), update(1, 8)]))


def test_what_would_push_out_adapters_that_run_is_refused_until_fewer_run(layer: nn.Linear) -> None:
    modules = {"up": layer, "down": nn.Linear(NUM_OUT, NUM_IN)}
    bank = AdapterBank(modules, torch.float32, limits=BankLimits(bytes=3 * PAGE_BYTES))
    for number in (1, 2):
        bank.load(str(number), Contribution({"up": update(number)}))
    assert bank.admit("1", ()) and bank.admit("2", {"1"})
    down = bank.pack("down", Contribution({"down": LowRank(torch.ones(2, NUM_OUT), torch.ones(NUM_IN, 2))}))
    with pytest.raises(RefusedAdapter, match="the 2 adapters that run now would not fit"):
        bank.put("down", down, {"1", "2"})
    x_BTI = torch.randn(2, 1, NUM_IN)
    torch.testing.assert_close(run(layer, bank, x_BTI, ["1", "2"]), expected(layer, x_BTI, [update(1), update(2)]))
    bank.put("down", down, {"1"})
    torch.testing.assert_close(run(layer, bank, x_BTI, ["1", "1"]), expected(layer, x_BTI, [update(1), update(1)]))


def test_pages_of_an_adapter_that_left_show_nothing_of_it(layer: nn.Linear) -> None:
    other = nn.Linear(NUM_OUT, NUM_IN)
    bank = AdapterBank({"up": layer, "down": other}, torch.float32, limits=BankLimits(adapters=1))
    full = Contribution({"up": LowRank(torch.ones(16, NUM_IN), torch.ones(NUM_OUT, 16), torch.ones(NUM_OUT))})
    down = Contribution({"down": LowRank(torch.ones(16, NUM_OUT), torch.ones(NUM_IN, 16), torch.ones(NUM_IN))})
    narrow = Contribution({"up": update(3, 9)})
    for name, contribution in (("full", full), ("down", down), ("narrow", narrow)):
        bank.load(name, contribution)
    x_BTI, y_BTO = torch.randn(2, 3, NUM_IN), torch.randn(2, 3, NUM_OUT)
    for tokens in (slice(None), slice(0, 1)):
        run(layer, bank, x_BTI, ["full"] * 2)
        run(other, bank, y_BTO, ["down"] * 2)
        low = update(3, 9)
        x, y = x_BTI[:, tokens], y_BTO[:, tokens]
        torch.testing.assert_close(run(layer, bank, x, ["narrow", ""]), expected(layer, x, [low, None]))
        torch.testing.assert_close(run(other, bank, y, ["narrow", "narrow"]), nn.functional.linear(y, other.weight, other.bias))


def test_weights_that_overflow_in_what_is_computed_with_are_refused(layer: nn.Linear) -> None:
    bank = bank_of(layer, BankLimits(), torch.float16)
    with pytest.raises(DamagedAdapter, match="'huge' at up hold NaN or infinity"):
        bank.load("huge", Contribution({"up": LowRank(torch.full((1, NUM_IN), 1e6), torch.ones(NUM_OUT, 1))}))


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_diverges_in_one_row_reaches_no_other(dtype: torch.dtype, num_tokens: int) -> None:
    layer = nn.Linear(NUM_IN, NUM_OUT).to(dtype)
    bank = bank_of(layer, BankLimits(), dtype)
    bank.load("wild", Contribution({"up": LowRank(torch.full((2, NUM_IN), 3e38), torch.full((NUM_OUT, 2), 3e38))}))
    bank.load("tame", Contribution({"up": update(1)}))
    x_BTI = torch.ones(4, num_tokens, NUM_IN, dtype=dtype)
    mixed = run(layer, bank, x_BTI, ["", "wild", "tame", "wild"])
    assert not torch.isfinite(mixed[[1, 3]]).any()
    assert torch.equal(mixed[0], run(layer, bank, x_BTI, [""] * 4)[0])
    tolerance = 1e-6 if dtype == torch.float32 else 0.05
    alone = run(layer, bank, x_BTI, ["tame"] * 4)
    torch.testing.assert_close(mixed[2], alone[2], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 30])
def test_rows_of_many_ranks_and_biases_equal_their_own_products(dtype: torch.dtype, num_tokens: int) -> None:
    torch.manual_seed(0)
    query, value, out = (nn.Linear(NUM_IN, NUM_OUT).to(dtype) for _ in range(3))
    linears = {"query": query, "value": value, "out": out}
    bank = AdapterBank(linears, dtype, groups=[("query", "value"), ("out",)])
    known: dict[str, dict[str, LowRank]] = {}
    for number, rank in enumerate((1, 3, 8, 9, 16, 30)):
        seeds = {path: 10 * number + place for place, path in enumerate(linears) if place != number % 3}
        known[str(number)] = {path: update(seed, rank) for path, seed in seeds.items()}
        if number % 2:
            first = next(iter(known[str(number)]))
            low = known[str(number)][first]
            known[str(number)][first] = LowRank(low.a_RI, low.b_OR, torch.randn(NUM_OUT))
        bank.load(str(number), Contribution(known[str(number)]))
    chance, tolerance = random.Random(0), 1e-4 if dtype == torch.float32 else 0.3
    for num_rows in (1, 2, 7, 12):
        for names in ([chance.choice("0123456") for _ in range(num_rows)], ["3"] * num_rows, ["", *"5" * (num_rows - 1)]):
            x_BTI = torch.randn(num_rows, num_tokens, NUM_IN).to(dtype)
            with torch.inference_mode(), bank.rows(names):
                found = {path: module(x_BTI) for path, module in linears.items()}
            for path, module in linears.items():
                plain = module(x_BTI).detach()
                for row, name in enumerate(names):
                    mine = known.get(name, {}).get(path)
                    if mine is None:
                        assert torch.equal(found[path][row], plain[row])
                        continue
                    bias = 0 if mine.bias_O is None else mine.bias_O
                    wanted = plain[row].float() + x_BTI[row].float() @ mine.a_RI.T @ mine.b_OR.T + bias
                    torch.testing.assert_close(found[path][row].float(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_order_of_loads_unloads_and_rows_gives_each_row_its_own_adapter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(NUM_IN, NUM_OUT).to(dtype)
    bank, chance = bank_of(layer, BankLimits(adapters=5, bytes=9 * PAGE_BYTES), dtype), random.Random(1)
    loaded: dict[str, LowRank] = {}
    for seed in range(400):
        name = chance.choice("abcdefghijkl")
        if name in loaded and chance.random() < 0.3:
            bank.unload(name)
            del loaded[name]
        elif chance.random() < 0.5:
            loaded[name] = update(seed, chance.choice([1, 4, 8, 12]))
            bank.load(name, Contribution({"up": loaded[name]}))
        present = chance.sample(sorted(loaded), min(len(loaded), 3))
        names = [chance.choice(["", *present]) for _ in range(4)]
        x_BTI = torch.randn(4, chance.choice([1, 1, 3]), NUM_IN).to(dtype)
        found = run(layer, bank, x_BTI, names).float()
        tolerance = 1e-4 if dtype == torch.float32 else 0.3
        updates = [loaded.get(owner) for owner in names]
        wanted = expected(layer.float() if dtype == torch.float32 else _as_float(layer), x_BTI.float(), updates)
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def _as_float(layer: nn.Linear) -> nn.Linear:
    wide = nn.Linear(NUM_IN, NUM_OUT)
    wide.weight.data, wide.bias.data = layer.weight.data.float(), layer.bias.data.float()
    return wide
