"""Arms: paired with their own seed, kept as they are read, and gone on with after a kill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.backbone import Backbone
from engine.torch_engine import TorchEngine
from evaluation.base_cache import BaseCache
from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.tasks import TASKS
from tuning.arms import BACKBONE, Arm, ArmBench, ArmReadings, contrast, finished
from tuning.errors import DamagedStudy
from tuning.journal import Journal
from tuning.methods.sft import SFTSpec
from tuning.recipe import Recipe


def readings(name: str, seed: int, values: Sequence[float]) -> ArmReadings:
    clusters = [str(index % 12) for index in range(len(values))]
    return ArmReadings(name, seed, {"m/t": list(values)}, {"m/t": clusters}, {"m/t": {}}, {"num_tokens": 1.0})


def test_what_is_alike_differs_by_exactly_zero() -> None:
    found = [readings(name, seed, [seed + 0.1 * n for n in range(24)]) for seed in range(3) for name in "NW"]
    same = contrast(found, "N", "W", ["m/t"])
    assert (same.change.mean, same.change.low, same.change.high, same.by_seed) == (0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    assert same.spans_zero and not same.is_gain and not same.is_loss


def test_every_seed_is_paired_with_its_own() -> None:
    # Between seeds the level jumps; within each the difference is the same.
    found = [readings("N", seed, [10 * seed + 0.5] * 24) for seed in range(3)]
    found += [readings("W", seed, [10.0 * seed] * 24) for seed in range(3)]
    change = contrast(found, "N", "W", ["m/t"])
    assert change.by_seed == (0.5, 0.5, 0.5)
    assert 0 < change.change.low < change.change.high == 0.5  # the bound of Clopper and Pearson, not a point


def test_one_seed_that_goes_the_other_way_is_no_gain() -> None:
    found = [readings("N", seed, [0.9 if seed else -0.1] * 24) for seed in range(3)]
    found += [readings("W", seed, [0.0] * 24) for seed in range(3)]
    change = contrast(found, "N", "W", ["m/t"])
    assert change.change.mean > 0.5 and not change.is_gain


def test_the_backbone_stands_beside_every_seed() -> None:
    found = [readings(BACKBONE, 0, [1.0] * 24), *(readings("N", seed, [2.0 + seed] * 24) for seed in (4, 5))]
    assert contrast(found, "N", BACKBONE, ["m/t"]).by_seed == (5.0, 6.0)


def test_what_no_arm_could_show_is_unknown_and_never_zero() -> None:
    found = [readings("N", 0, [math.nan] * 24), readings("W", 0, [0.0] * 24)]
    change = contrast(found, "N", "W", ["m/t"])
    assert change.change.n == 0 and change.as_dict()["change"] is None
    assert not (change.is_gain or change.is_loss)


@pytest.fixture
def bench(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> ArmBench:
    recipe = Recipe(name="x", backbone=str(backbone_directory), domain="icd10-chapter", adapter={"lora": {"rank": 4}})
    task = TASKS["boxes"]
    plan = [Planned(MEASURES["chain_likelihood"], task, task.examples("select", 8), "protected")]
    cache = BaseCache(tmp_path / "base", "float32")
    return ArmBench(recipe, backbone, TorchEngine(backbone, precision="float32"), plan, cache, Journal(tmp_path / "arms.jsonl"))


def small_arms(names: str, seeds: int = 1) -> list[Arm]:
    rows = TASKS["arithmetic"].examples("train", 8)
    method = SFTSpec(steps=2, batch_size=4, target="rationale", learning_rate=1e-2)
    return [Arm(name, seed, rows, method) for seed in range(seeds) for name in names]


def test_a_bench_that_was_stopped_goes_on_and_reads_the_same(bench: ArmBench, tmp_path: Path) -> None:
    arms = small_arms("NW", seeds=2)
    looks = iter([False, True])
    first = bench.run(arms, out_of_time=lambda: next(looks))
    assert [one.name for one in first] == [BACKBONE, "N"] and not finished(first, arms)
    with (tmp_path / "arms.jsonl").open("a") as file:
        file.write('{"name": "W", "se')  # killed in the middle of a line
    fitted: list[int] = []
    second = bench.run(arms, lambda what, done, of: fitted.append(done))
    assert finished(second, arms) and fitted[0] == 1 and fitted[-1] == 4
    assert second == bench.stored() and second[:2] == first
    one, other = (next(r for r in second if (r.name, r.seed) == (name, 1)) for name in "NW")
    assert one.values == other.values, "the same rows under the same seed"


def test_seeds_give_different_fits(bench: ArmBench) -> None:
    found = bench.run(small_arms("N", seeds=2))
    assert found[1].values != found[2].values


@pytest.mark.parametrize("text", ['{"arm": "N"', "[]", "null"])
def test_a_line_that_is_no_entry_is_told_with_its_place_and_the_way_out(tmp_path: Path, text: str) -> None:
    journal = Journal(tmp_path / "arms.jsonl")
    journal.append({"arm": "N"})
    with journal.file.open("a") as out:
        out.write(f"{text}\n")
    with pytest.raises(DamagedStudy, match=r"line 2 of .*arms.jsonl is none. Delete that line"):
        journal.entries()
