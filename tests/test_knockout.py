"""Layer knock-out: nothing off is the adapter, everything off is the backbone, and each layer answers for itself."""

from __future__ import annotations

import numpy as np
import pytest
from fitted import fitted_lora, fitted_softcot, random_steering
from toy_engine import ToyEngine

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.admission import random_update
from evaluation.evaluate import Planned, Row, compared
from evaluation.knockout import (
    KnockOut,
    Layers,
    Point,
    bands,
    grouped,
    knock_out,
    lost_per_regained,
    num_readings,
    seconds_for,
)
from evaluation.measure import Readings
from evaluation.measures import MEASURES
from evaluation.retention import search_measure
from evaluation.statistics import paired_change
from evaluation.tasks import TASKS
from tuning.plan import knockout_plan


@pytest.fixture(scope="module")
def plan() -> list[Planned]:
    return knockout_plan(TASKS["icd10-chapter"], [TASKS["boxes"], TASKS["grammar"]], 3)


class Counted(TorchEngine):
    """Counts how often an adapter is loaded."""

    loads = 0

    def load(self, name: str, profile: Profile) -> None:
        self.loads += 1
        super().load(name, profile)


def in_one_layer(backbone: Backbone, layer: int) -> LoRA:
    """Random weights in one layer, and zeros in the others."""
    found = fitted_lora(backbone, 1).scaled_by_layer([float(place == layer) for place in range(len(backbone.layers))])
    assert isinstance(found, LoRA)
    return found


def found_by(backbone: Backbone, plan: list[Planned], *adapters: Adapter, swept: bool = False) -> KnockOut:
    groups, engine = grouped(len(backbone.layers), 2), TorchEngine(backbone)
    return knock_out(
        engine, backbone, Profile(adapters), plan, groups, bands(2) if swept else (Layers("all", 0, 2),), (0.0, 0.5, 1.0)
    )


def per_item(rows: tuple[Row, ...]) -> set[float]:
    return {value for row in rows for value in row.change.per_item}


@pytest.mark.parametrize("kind", ["lora", "steering", "both"])
def test_everything_off_is_the_backbone_and_nothing_off_the_adapter_exactly(
    backbone: Backbone, plan: list[Planned], kind: str
) -> None:
    adapters = {"lora": (fitted_lora(backbone, 1),), "steering": (random_steering(backbone, 0),)}
    found = found_by(backbone, plan, *adapters.get(kind, sum(adapters.values(), ())))
    off, half, whole = found.sweep
    assert per_item(off.against_backbone) == {0.0} and per_item(whole.against_whole) == {0.0}
    assert per_item(off.against_whole) != {0.0} and len(per_item(half.against_whole) & {0.0}) <= 1
    assert [row.change for row in whole.against_backbone] == [row.change for row in found.whole]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_without_weights_answers_for_nothing_and_the_other_for_all(
    backbone: Backbone, plan: list[Planned], layer: int
) -> None:
    found = found_by(backbone, plan, in_one_layer(backbone, layer))
    assert [point.layers.name for point in found.off] == ["0", "1"]
    assert per_item(found.off[1 - layer].against_whole) == {0.0}
    assert per_item(found.off[layer].against_backbone) == {0.0}


def test_an_adapter_of_zeros_has_nothing_to_knock_out(backbone: Backbone, plan: list[Planned]) -> None:
    found = found_by(backbone, plan, random_update(backbone, 0.0), swept=True)
    for point in (*found.off, *found.sweep):
        assert per_item(point.against_backbone) == per_item(point.against_whole) == {0.0}
        assert point.cost("boxes") is None


def test_damage_in_one_layer_is_regained_by_turning_that_layer_off(backbone: Backbone) -> None:
    task = TASKS["arithmetic"]
    examples = task.examples("select", 24)
    measure = MEASURES["chain_likelihood"]
    plan = [Planned(measure, task, examples, "domain"), Planned(measure, task, examples, "protected")]
    engine, damaged = ToyEngine(backbone, examples), Profile((in_one_layer(backbone, 1),))
    found = knock_out(engine, backbone, damaged, plan, grouped(2, 2))
    assert found.whole[1].change.high < 0
    assert found.off[1].retention["arithmetic"].change.low > 0
    assert set(found.off[0].retention["arithmetic"].change.per_item) == {0.0}


def test_progress_is_told_reading_by_reading_up_to_their_number(backbone: Backbone, plan: list[Planned]) -> None:
    told: list[tuple[int, int]] = []
    groups, swept = grouped(2, 2), bands(2)
    lora = Profile((fitted_lora(backbone, 1),))
    knock_out(TorchEngine(backbone), backbone, lora, plan, groups, swept, (0.0, 1.0), on_progress=lambda *now: told.append(now))
    readings = num_readings(2, groups, swept, (0.0, 1.0))
    assert told == [(done, readings) for done in (0, *range(2, readings + 1))]


def test_soft_thoughts_act_in_no_layer_and_the_reason_is_told(backbone: Backbone, plan: list[Planned]) -> None:
    found = found_by(backbone, plan, fitted_softcot(backbone, 1))
    assert not found.off and "acts in no layer" in found.not_measurable


def test_knocking_out_leaves_the_adapter_and_the_engine_as_they_were(backbone: Backbone, plan: list[Planned]) -> None:
    lora, engine = fitted_lora(backbone, 1), TorchEngine(backbone)
    before = {key: tensor.clone() for key, tensor in lora.tensors().items()}
    knock_out(engine, backbone, Profile((lora,)), plan, grouped(2, 2))
    assert all(bool((lora.tensors()[key] == tensor).all()) for key, tensor in before.items())
    assert engine.loaded == ()


def test_what_it_will_cost_is_told_before_it_begins(backbone: Backbone, plan: list[Planned]) -> None:
    groups, swept, alphas = grouped(2, 2), bands(2), (0.0, 0.5, 1.0)
    readings = num_readings(2, groups, swept, alphas)
    engine, profile = Counted(backbone), Profile((fitted_lora(backbone, 1),))
    knock_out(engine, backbone, profile, plan, groups, swept, alphas)
    assert engine.loads == readings - 1  # the backbone is read without loading
    ticks = iter((0.0, 2.0))
    # Two of three items a task took two seconds.
    assert seconds_for(engine, backbone, profile, plan, readings, lambda: next(ticks)) == pytest.approx(3.0 * readings)
    assert engine.loaded == ()


def test_half_the_groups_and_strengths_are_half_the_cost() -> None:
    few = num_readings(30, grouped(30, 6), bands(30), (0.0, 0.5, 1.0))
    assert (few, num_readings(30, grouped(30, 10), bands(30))) == (16, 28)


def test_groups_hold_every_layer_once() -> None:
    groups = grouped(30, 7)
    assert [layer for group in groups for layer in range(group.first, group.end)] == list(range(30))
    assert {group.end - group.first for group in groups} == {4, 5}
    for count in (0, 31):
        with pytest.raises(ValueError, match="of 30 layers. Ask for fewer"):
            grouped(30, count)


def test_the_bands_are_those_that_a_lora_can_be_fitted_in(backbone: Backbone) -> None:
    for band in bands(len(backbone.layers))[1:]:
        lora = LoRA(LoRASpec(band=band.name, rank=2))  # type: ignore[arg-type]
        with lora.attach(backbone):
            paths = lora.contribution().low_rank
        assert {int(path.split(".")[2]) for path in paths} == set(range(band.first, band.end))


def test_the_ratio_is_domain_lost_over_retention_regained() -> None:
    clusters = [str(index) for index in range(40)]
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    domain = paired_change([0.0] * 40, (-0.10 + noise[::-1]).tolist(), clusters)
    family = paired_change([0.0] * 40, (0.05 + noise).tolist(), clusters)
    found = lost_per_regained(domain, family)
    assert found is not None and found.low < found.value < found.high
    assert found.value == pytest.approx(2.0, rel=0.1)


def test_nothing_is_divided_by_what_is_not_shown_to_be_regained() -> None:
    clusters = [str(index) for index in range(40)]
    domain = paired_change([0.0] * 40, [-0.10] * 40, clusters)
    for mean in (0.0, -0.5):
        noise = np.random.default_rng(0).normal(mean, 0.1, 40).tolist()
        assert lost_per_regained(domain, paired_change([0.0] * 40, noise, clusters)) is None


@pytest.mark.parametrize("lost", [0.0, -0.10])
def test_a_domain_whose_items_all_changed_alike_has_no_ratio(lost: float) -> None:
    clusters = [str(index) for index in range(40)]
    regained = np.random.default_rng(0).normal(0.3, 0.1, 40).tolist()
    family = paired_change([0.0] * 40, regained, clusters)
    assert family.low > 0 and lost_per_regained(paired_change([0.0] * 40, [lost] * 40, clusters), family) is None


def test_the_interval_of_the_ratio_covers() -> None:
    rng, clusters, covered = np.random.default_rng(1), [str(index) for index in range(60)], 0
    for _ in range(200):
        lost, regained = rng.normal(-0.2, 0.3, 60).tolist(), rng.normal(0.4, 0.5, 60).tolist()
        found = lost_per_regained(
            paired_change([0.0] * 60, lost, clusters, draws=200), paired_change([0.0] * 60, regained, clusters, draws=200)
        )
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert 180 <= covered <= 200


def test_the_front_holds_what_no_other_point_beats() -> None:
    def point(name: str, gain: float, kept: float) -> Point:
        rows = []
        for task, change, role in (("icd10", gain, "domain"), ("boxes", kept, "protected")):
            planned = Planned(search_measure(TASKS["boxes"]), TASKS[task], (), role)  # type: ignore[arg-type]
            sides = [Readings("m", task, ("1", "2"), (value, value), ("1", "2"), "nats per token") for value in (0.0, change)]
            rows.append(compared(planned, *sides))
        return Point(Layers(name, 0, 1), 1.0, tuple(rows), tuple(rows))

    points = point("best", 0.3, -0.001), point("beaten", 0.2, -0.002), point("kept", 0.1, 0.0), point("equal", 0.1, 0.5)
    front = KnockOut((), (), points).front
    # A gain in retention buys nothing: the last two are equally good.
    assert [found.layers.name for found in front] == ["best", "kept", "equal"]
