"""SoftCoT and SoftCoT++ as a method: what several sets of thoughts learn together, and what keeps them apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.softcot import SoftCoT, SoftCoTSpec
from evaluation.errors import DataError
from evaluation.task import Example
from evaluation.tasks import TASKS
from tuning.batches import Row
from tuning.loop import OnStep
from tuning.methods.method import Fit
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.softcot import DROPOUT, TEMPERATURE, Chains, SoftCoTFitSpec, SoftCoTPlusPlus, contrast
from tuning.recipe import Recipe

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(6)
]


def softcot_of(num_chains: int = 3, **spec: Any) -> SoftCoT:
    return SoftCoT(SoftCoTSpec(**{"num_thoughts": 3, "assistant_layers": 1, "num_chains": num_chains} | spec))


def method(**spec: Any) -> SoftCoTPlusPlus:
    return SoftCoTPlusPlus(SoftCoTFitSpec(**{"steps": 15, "batch_size": 6, "learning_rate": 2e-2} | spec))


def sets(backbone: Backbone, softcot: SoftCoT) -> torch.Tensor:
    with torch.no_grad():
        return softcot.thoughts(backbone, backbone.chat_ids(EXAMPLES[0].question))


@pytest.mark.parametrize("static", [False, True])
def test_every_set_learns_and_the_backbone_stays_bit_for_bit(backbone: Backbone, static: bool) -> None:
    digest, softcot = backbone.weights_digest(), softcot_of(static=static)
    before = sets(backbone, softcot)
    fit = method().fit(backbone, [softcot], EXAMPLES)
    assert fit.losses[-1] < 0.9 * fit.losses[0]
    assert all(float((after - start).norm()) > 0.1 for after, start in zip(sets(backbone, softcot), before, strict=True))
    assert backbone.weights_digest() == digest


def test_initial_tokens_are_learnt(backbone: Backbone) -> None:
    softcot = softcot_of()
    sets(backbone, softcot)
    before = softcot.tensors()["initial"]
    method(steps=3).fit(backbone, [softcot], EXAMPLES)
    assert bool((softcot.tensors()["initial"] != before).any(-1).all())


def test_the_contrast_keeps_the_sets_apart_and_without_it_they_are_nearer(backbone: Backbone) -> None:
    def nearness(weight: float) -> tuple[float, Fit]:
        softcot = softcot_of()
        fit = method(contrast_weight=weight).fit(backbone, [softcot], EXAMPLES)
        flat = torch.nn.functional.normalize(sets(backbone, softcot).flatten(1), dim=-1)
        return float((flat @ flat.T).triu(1).sum() / 3), fit

    (apart, fit), (free, plain) = nearness(2.0), nearness(0.0)
    assert apart < free - 0.1
    assert fit.numbers["contrast"][-1] < plain.numbers["contrast"][-1]


def test_the_contrast_is_log_n_for_sets_that_are_alike_and_nothing_for_orthogonal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.methods.softcot.DROPOUT", 0.0)
    alike = torch.ones(4, 2, 8)
    assert float(contrast(alike)) == pytest.approx(math.log(4), abs=1e-5)
    assert float(contrast(torch.eye(4).reshape(4, 2, 2))) < 1e-6


def test_a_set_must_be_more_like_itself_under_dropout_than_like_the_others() -> None:
    assert (TEMPERATURE, DROPOUT) == (0.05, 0.5), "as published"
    torch.manual_seed(0)
    sets_NKH = torch.randn(4, 2, 8)
    drawn = [float(contrast(sets_NKH)) for _ in range(4)]
    assert len(set(drawn)) == 4


def test_of_a_batch_every_example_has_its_own_contrast(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    # The published code overwrites the states inside its loop, so that a batch has the contrast of its last example alone.
    monkeypatch.setattr("tuning.methods.softcot.DROPOUT", 0.0)
    softcot, fit = softcot_of(gate=0.5), method(batch_size=2)
    rows = fit.prepare(_given(backbone)).rows

    def told(chosen: list[int]) -> float:
        with softcot.attach(backbone):
            learner = fit.learner(backbone, Stack([softcot]), rows, [])
            assert isinstance(learner, Chains)
            batch = [rows[index] for index in chosen]
            return learner.backward(batch, batch)["contrast"]

    one, two = told([0]), told([1])
    assert one != two
    assert told([0, 1]) == pytest.approx((one + two) / 2, rel=1e-5)


def test_the_pull_is_a_mean_over_the_sets_and_the_rows(backbone: Backbone) -> None:
    softcot, fit = softcot_of(gate=0.5), method(kl_weight=1.0)
    rows = list(fit.prepare(_given(backbone)).rows[:2])

    def told(batch: list[Row]) -> float:
        with softcot.attach(backbone):
            return fit.learner(backbone, Stack([softcot]), rows, []).backward(batch, batch)["kl"]

    assert 0 < told(rows) == pytest.approx(told([*rows, *rows]), rel=1e-3)


def _given(backbone: Backbone) -> Any:
    from tuning.methods.method import Given

    return Given(backbone, [], EXAMPLES)


def test_one_set_is_learnt_as_sft_learns_it(backbone: Backbone) -> None:
    values = {"steps": 3, "batch_size": 6, "learning_rate": 1e-2}
    ours = method(**values).fit(backbone, [softcot_of(1)], EXAMPLES)
    plain = SFT(SFTSpec(**values, target="rationale")).fit(backbone, [softcot_of(1)], EXAMPLES)
    assert ours.losses == plain.losses and "contrast" not in ours.numbers


def test_the_loss_is_the_mean_over_the_sets_and_counts_all_their_tokens(backbone: Backbone) -> None:
    one = method(steps=1).fit(backbone, [softcot_of(1)], EXAMPLES)
    three = method(steps=1).fit(backbone, [softcot_of(3)], EXAMPLES)
    softcot, prompts = softcot_of(3), [row.prompt_ids for row in method().prepare(_given(backbone)).rows]
    read = sum(softcot.num_read(backbone, prompt_ids) for prompt_ids in prompts)
    assert read > sum(map(len, prompts)) and three.num_tokens == 3 * (one.num_tokens + read)
    static = [method(steps=1).fit(backbone, [softcot_of(count, static=True)], EXAMPLES).num_tokens for count in (1, 3)]
    assert static[1] == 3 * static[0] == 3 * one.num_tokens
    assert three.losses[0] == pytest.approx(one.losses[0], rel=0.1)


def test_the_pull_to_the_backbone_is_over_every_set(backbone: Backbone) -> None:
    def distance(weight: float) -> float:
        return method(kl_weight=weight, steps=20).fit(backbone, [softcot_of()], EXAMPLES).kl[-1]

    assert distance(5.0) < distance(0.01)


def test_a_fit_of_several_sets_that_was_killed_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)

    def fitted(directory: Path, on_step: OnStep | None = None) -> tuple[Fit, dict[str, torch.Tensor]]:
        softcot = softcot_of()
        return method(steps=5, batch_size=3).fit(backbone, [softcot], EXAMPLES, on_step, directory=directory), softcot.tensors()

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole, at_once = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", kill)
    resumed, in_two = fitted(tmp_path / "killed")
    assert resumed.numbers == whole.numbers
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


def test_other_kinds_other_methods_and_rows_without_a_chain_are_refused() -> None:
    softcot = {"kind": "softcot", "softcot": {"num_chains": 3}}
    with pytest.raises(ValueError, match="'softcot' trains softcot, but adapter.kind is 'lora'"):
        Recipe(name="x", domain="icd10", method={"name": "softcot"})
    with pytest.raises(ValueError, match=r"num_chains is 3 and the method 'sft'. Set method.name = \"softcot\""):
        Recipe(name="x", domain="icd10", adapter=softcot)
    assert Recipe(name="x", domain="icd10", adapter=softcot, method={"name": "softcot"}).method.name == "softcot"
    bare = [Example(id="1", question="?", answer="1", group="a")]
    with pytest.raises(DataError, match="learns a rationale from every row"):
        method().check(bare, TASKS["boxes"])
