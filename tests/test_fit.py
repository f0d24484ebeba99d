"""Fitting: what the loop learns, what it refuses, and what it leaves alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from adapters.adapter import Prompt, Stack
from adapters.backbone import Backbone
from adapters.files import new_adapter
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoTSpec
from evaluation.errors import DataError
from evaluation.task import Example
from tuning.batches import collate, endless_rows, rows_of
from tuning.distance import label_logits
from tuning.errors import Diverged
from tuning.loop import OnStep, schedule
from tuning.methods.method import Fit
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.supervised import token_loss

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(6)
]
SPECS = {"lora": [LoRASpec(rank=4)], "softcot": [SoftCoTSpec(num_thoughts=3, assistant_layers=1)]}
SPECS["lora+softcot"] = SPECS["lora"] + SPECS["softcot"]


@pytest.mark.parametrize("kind", SPECS)
def test_a_fit_lowers_the_loss_and_leaves_the_backbone_bit_for_bit(backbone: Backbone, kind: str) -> None:
    before = backbone.weights_digest()
    fit = SFT(SFTSpec(steps=25, batch_size=6, learning_rate=2e-2)).fit(
        backbone, [new_adapter(spec) for spec in SPECS[kind]], EXAMPLES
    )
    assert fit.losses[-1] < 0.9 * fit.losses[0]
    assert backbone.weights_digest() == before
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_the_same_seed_fits_the_same_adapter(backbone: Backbone) -> None:
    def fitted(seed: int) -> dict[str, torch.Tensor]:
        lora = LoRA(LoRASpec(rank=4))
        SFT(SFTSpec(steps=3, batch_size=3, seed=seed)).fit(backbone, [lora], EXAMPLES)
        return lora.tensors()

    one, two, other = fitted(0), fitted(0), fitted(1)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_pull_towards_the_backbone_keeps_the_adapter_nearer(backbone: Backbone) -> None:
    def distance(kl_weight: float) -> float:
        lora = LoRA(LoRASpec(rank=4))
        spec = SFTSpec(steps=20, batch_size=6, learning_rate=1e-2, kl_weight=kl_weight)
        SFT(spec).fit(backbone, [lora], EXAMPLES)
        ids = torch.tensor([backbone.chat_ids(EXAMPLES[0].question)])
        with torch.no_grad():
            base = backbone.model(ids).logits.log_softmax(-1)
            with lora.attach(backbone):
                adapted = backbone.model(ids).logits.log_softmax(-1)
        return float((base.exp() * (base - adapted)).sum(-1).mean())

    assert distance(5.0) < 0.7 * distance(0.0)


def test_a_loss_that_is_not_finite_is_an_error_with_the_way_out(backbone: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))
    with lora.attach(backbone):
        pass
    lora.tensors()["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].fill_(float("nan"))
    before = backbone.weights_digest()
    with pytest.raises(Diverged, match="loss must stay finite, but is nan at step 1.*Lower it"):
        SFT(SFTSpec(steps=2, batch_size=2)).fit(backbone, [lora], EXAMPLES)
    assert backbone.weights_digest() == before


@pytest.mark.parametrize(("steps", "spoil_at"), [(1, 1), (3, 3), (3, 2)])
def test_weights_that_are_not_finite_are_never_handed_on(backbone: Backbone, steps: int, spoil_at: int) -> None:
    lora = LoRA(LoRASpec(rank=4))

    def spoil(step: int, num_steps: int, loss: float) -> None:
        if step == spoil_at:
            list(lora.parameters())[-1].data.fill_(float("nan"))

    with pytest.raises(Diverged, match=f"must stay finite, .* of {steps} with learning_rate=0.0005. Lower it"):
        SFT(SFTSpec(steps=steps, batch_size=2)).fit(backbone, [lora], EXAMPLES, spoil)


def test_a_gradient_that_is_not_finite_stops_the_fit_at_its_step(backbone: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))

    def spoil(step: int, num_steps: int, loss: float) -> None:
        next(iter(lora.parameters())).register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(Diverged, match="gradient's norm must stay finite, but is (inf|nan) at step 2 of 2"):
        SFT(SFTSpec(steps=2, batch_size=2)).fit(backbone, [lora], EXAMPLES, spoil)


def test_only_the_completion_is_learnt(backbone: Backbone) -> None:
    rows = rows_of(backbone, EXAMPLES, "answer")
    batch = collate(backbone, Stack(()), rows)
    labels = batch.targets_BT[batch.targets_BT != -100]
    assert labels.numel() == sum(len(row.completion_ids) for row in rows)
    first = batch.targets_BT[0]
    assert first[len(rows[0].prompt_ids) - 1] == rows[0].completion_ids[0]
    assert bool((first[: len(rows[0].prompt_ids) - 1] == -100).all())


def test_logits_at_the_labels_are_those_of_the_whole_model(backbone: Backbone) -> None:
    row = rows_of(backbone, EXAMPLES[:1], "rationale")[0]
    with torch.no_grad():
        logits_NV, labels_N = label_logits(backbone, collate(backbone, Stack(()), [row, row]))
        whole = backbone.model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
    assert tuple(labels_N[: len(row.completion_ids)].tolist()) == row.completion_ids
    assert torch.allclose(logits_NV[: len(row.completion_ids)], whole, atol=1e-5)


def test_every_row_is_seen_before_one_comes_again(backbone: Backbone) -> None:
    rows = rows_of(backbone, EXAMPLES, "answer")
    seen = [row.completion_ids for row in islice(endless_rows(rows, seed=0), len(rows))]
    assert len(set(seen)) == len(rows)


def test_a_fitted_adapter_saved_and_loaded_answers_the_same(backbone: Backbone, tmp_path: Path) -> None:
    from engine.profile import Profile

    adapters = tuple(new_adapter(spec) for spec in SPECS["lora+softcot"])
    SFT(SFTSpec(steps=3, batch_size=3)).fit(backbone, adapters, EXAMPLES)
    Profile(adapters).save(tmp_path / "adapter")
    again = Profile.load(tmp_path / "adapter")
    ids = backbone.chat_ids("What comes after 9?")

    def logits(stack: Stack) -> torch.Tensor:
        with torch.no_grad(), stack.attach(backbone):
            prompt = stack.transform(backbone, Prompt(ids))
            out: torch.Tensor = backbone.model(inputs_embeds=prompt.embed(backbone.embeddings)[None]).logits
            return out

    assert torch.allclose(logits(Stack(adapters)), logits(Stack(again.adapters)), atol=1e-5)


def test_a_fit_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    spec, seen = SFTSpec(steps=6, batch_size=3, kl_weight=0.1), []

    def fitted(directory: Path, on_step: OnStep | None = None) -> tuple[Fit, dict[str, torch.Tensor]]:
        lora = LoRA(LoRASpec(rank=4, dropout=0.1))
        return SFT(spec).fit(backbone, [lora], EXAMPLES, on_step, directory=directory), lora.tensors()

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole, at_once = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", kill)
    resumed, in_two = fitted(tmp_path / "killed", lambda step, steps, loss: seen.append(step))
    assert seen == [4, 5, 6]
    assert (resumed.losses, resumed.kl, resumed.num_tokens) == (whole.losses, whole.kl, whole.num_tokens)
    assert all(torch.equal(at_once[key], in_two[key]) for key in at_once)


def test_a_checkpoint_of_another_fit_is_not_taken(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    seen: list[int] = []

    def note(step: int, steps: int, loss: float) -> None:
        seen.append(step)

    for rate in (1e-3, 2e-3):
        spec = SFTSpec(steps=2, batch_size=3, learning_rate=rate)
        SFT(spec).fit(
            backbone, [LoRA(LoRASpec(rank=4))], EXAMPLES, lambda step, steps, loss: seen.append(step), directory=tmp_path
        )
    assert seen == [1, 2, 1, 2]


def test_dft_weighs_each_token_by_its_own_probability() -> None:
    logits_NV, labels_N = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True), torch.tensor([0, 0])
    nll_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    expected = (nll_N * nll_N.neg().exp().detach()).sum()
    got = token_loss(logits_NV, labels_N, "dft")
    assert torch.allclose(got, expected)
    gradient = torch.autograd.grad(got, logits_NV, retain_graph=True)[0]
    plain = torch.autograd.grad(nll_N.sum(), logits_NV)[0]
    assert torch.allclose(gradient, plain * nll_N.detach().neg().exp()[:, None])


def test_a_row_longer_than_the_backbone_reads_is_named_with_the_way_out(backbone: Backbone) -> None:
    long = Example(id="long", question="word " * 3000, answer="1", rationale="", group="a")
    with pytest.raises(DataError, match=r"1 of 7 rows do not; the first has \d+ and \d+. Shorten"):
        SFT(SFTSpec(steps=1)).fit(backbone, [LoRA(LoRASpec(rank=4))], [*EXAMPLES, long])


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_a_tenth() -> None:
    shares = [schedule(step, 20, 0.2) for step in range(21)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0] and shares[-1] == pytest.approx(0.1)
    assert shares[4:] == sorted(shares[4:], reverse=True) and shares[12] == pytest.approx(0.55)


def test_a_fit_ends_with_the_step_that_reaches_its_token_budget(backbone: Backbone) -> None:
    def fitted(**spec: int) -> Fit:
        return SFT(SFTSpec(batch_size=3, **spec)).fit(backbone, [LoRA(LoRASpec(rank=4))], EXAMPLES)

    whole = fitted(steps=6)
    bounded = fitted(steps=1000, token_budget=whole.num_tokens)
    assert (len(bounded.losses), bounded.num_tokens) == (6, whole.num_tokens)
    assert len(fitted(steps=1000, token_budget=whole.num_tokens - 1).losses) == 6
    assert len(fitted(steps=2, token_budget=whole.num_tokens).losses) == 2
