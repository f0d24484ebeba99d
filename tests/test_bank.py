"""The adapter bank: every row gets its own update, and what is wrong is refused whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter import Contribution, LowRank
from adapters.errors import DamagedAdapter, RefusedAdapter
from engine.bank import AdapterBank


def update(seed: int, rank: int, num_in: int = 6, num_out: int = 5) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, num_in, generator=generator), torch.randn(num_out, rank, generator=generator))


@pytest.fixture
def layers() -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {"up": nn.Linear(6, 5), "down": nn.Linear(5, 6)}


@pytest.fixture
def bank(layers: dict[str, nn.Linear]) -> AdapterBank:
    bank = AdapterBank(layers, torch.float32)
    bank.load("one", Contribution({"up": update(1, 2), "down": update(2, 2, 5, 6)}))
    bank.load("two", Contribution({"up": update(3, 4)}))
    return bank


def run(layer: nn.Linear, bank: AdapterBank, x_BTI: Tensor, names: list[str]) -> Tensor:
    with torch.inference_mode(), bank.rows(names):
        found: Tensor = layer(x_BTI)
    return found


def test_every_row_gets_the_update_of_its_name_and_rank(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(4, 3, 6)
    plain = layers["up"](x_BTI)
    found = run(layers["up"], bank, x_BTI, ["two", "", "one", "two"])
    for row, low in ((0, update(3, 4)), (2, update(1, 2)), (3, update(3, 4))):
        torch.testing.assert_close(found[row], plain[row] + x_BTI[row] @ low.a_RI.T @ low.b_OR.T)
    assert torch.equal(found[1], plain[1])


def test_a_batch_of_one_profile_equals_its_rows_in_a_mixed_batch(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(3, 2, 6)
    alone = run(layers["up"], bank, x_BTI, ["one"] * 3)
    mixed = run(layers["up"], bank, x_BTI, ["one", "two", "one"])
    torch.testing.assert_close(alone[[0, 2]], mixed[[0, 2]])


def test_a_module_without_an_update_of_that_name_is_left_alone(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(2, 3, 5)
    assert torch.equal(run(layers["down"], bank, x_BTI, ["two", "two"]), layers["down"](x_BTI))


def test_rows_count_inside_the_context_only(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(2, 3, 6)
    plain = torch.nn.functional.linear(x_BTI, layers["up"].weight, layers["up"].bias)
    assert not torch.equal(run(layers["up"], bank, x_BTI, ["one", "one"]), plain)
    assert torch.equal(layers["up"](x_BTI), plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["a_RI", "b_OR"])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_loaded(
    layers: dict[str, nn.Linear], bank: AdapterBank, part: str, value: float
) -> None:
    x_BTI = torch.randn(2, 3, 6)
    before = run(layers["up"], bank, x_BTI, ["one", "two"])
    broken = update(4, 2, 5, 6)
    getattr(broken, part)[1, 1] = value
    with pytest.raises(DamagedAdapter, match="'one' at down hold NaN or infinity"):
        bank.load("one", Contribution({"up": update(5, 2), "down": broken}))
    assert torch.equal(run(layers["up"], bank, x_BTI, ["one", "two"]), before)


def test_a_module_that_is_not_there_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(RefusedAdapter, match="'model.gate'.*fitted on"):
        bank.load("three", Contribution({"model.gate": update(1, 2)}))


def test_an_update_of_another_shape_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(RefusedAdapter, match="down maps 5 to 6, but the update of 'three' maps 6 to 5"):
        bank.load("three", Contribution({"down": update(1, 2)}))


def test_loading_again_replaces_the_whole_update(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(1, 3, 5)
    bank.load("one", Contribution({"up": update(7, 3)}))
    assert torch.equal(run(layers["down"], bank, x_BTI, ["one"]), layers["down"](x_BTI))


def test_the_bank_keeps_a_copy_of_what_it_loads(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI, live = torch.randn(1, 3, 6), update(7, 3)
    bank.load("live", Contribution({"up": live}))
    before = run(layers["up"], bank, x_BTI, ["live"])
    live.b_OR.add_(1.0)
    assert torch.equal(run(layers["up"], bank, x_BTI, ["live"]), before)


def test_unloaded_and_closed_are_bit_identical_to_never_loaded(layers: dict[str, nn.Linear], bank: AdapterBank) -> None:
    x_BTI = torch.randn(2, 3, 6)
    plain = torch.nn.functional.linear(x_BTI, layers["up"].weight, layers["up"].bias)
    bank.unload("one")
    assert torch.equal(run(layers["up"], bank, x_BTI, ["one", "one"]), plain)
    bank.close()
    assert torch.equal(run(layers["up"], bank, x_BTI, ["two", "two"]), plain)
    assert not layers["up"]._forward_hooks


def test_a_residual_vector_is_added_to_the_rows_of_its_name() -> None:
    layer, x_BTI = nn.Linear(6, 6), torch.randn(3, 2, 6)
    plain = layer(x_BTI).detach()
    bank = AdapterBank({"layer": layer}, torch.float32, [layer], hidden_size=6)
    bank.load("up", Contribution(residual={0: torch.ones(6)}))
    found = run(layer, bank, x_BTI, ["", "up", ""])
    torch.testing.assert_close(found - plain, torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand_as(plain))


@pytest.mark.parametrize(
    ("layer", "vector_H", "error", "said"),
    [
        (1, torch.ones(6), RefusedAdapter, "one of 1 layers of 6 numbers, but 'up' has shape .6,. after layer 1"),
        (0, torch.ones(5), RefusedAdapter, "has shape .5,. after layer 0"),
        (0, torch.full((6,), float("nan")), DamagedAdapter, "NaN or infinity. Make it again"),
    ],
)
def test_a_residual_vector_that_does_not_fit_is_refused_and_nothing_is_loaded(
    layer: int, vector_H: Tensor, error: type[Exception], said: str
) -> None:
    module = nn.Linear(6, 6)
    bank = AdapterBank({}, torch.float32, [module], hidden_size=6)
    with pytest.raises(error, match=said):
        bank.load("up", Contribution(residual={layer: vector_H}))
    assert not module._forward_hooks
