"""Retention levers of the supervised methods: replay, the pull towards the backbone on it, and weight decay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from evaluation.errors import DataError
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import FAMILIES
from tuning.batches import Row
from tuning.methods.method import Fit
from tuning.methods.sft import SFT, SFTSpec
from tuning.methods.supervised import drawn_batches
from tuning.recipe import search_marks
from tuning.replay import Replay
from tuning.rollouts import Rollouts, rollouts

EXAMPLES = [
    Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), rationale=f"{n} + 1 = {n + 1}", group=str(n))
    for n in range(6)
]
HELD = {"kl_weight": 5.0, "kl_on": "replay"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def writer(backbone: Backbone) -> Rollouts:
    with rollouts(backbone) as writer:
        yield writer


def fitted(backbone: Backbone, directory: Path | None = None, **levers: object) -> tuple[Fit, LoRA]:
    lora = LoRA(LoRASpec(rank=4))
    spec = SFTSpec(**{"steps": 20, "batch_size": 6, "learning_rate": 1e-2, "num_replay": 12, **levers})
    return SFT(spec).fit(backbone, [lora], EXAMPLES, directory=directory), lora


def distance(backbone: Backbone, lora: LoRA, rows: list[Row]) -> float:
    """Forward KL to the backbone on the completions of the rows, nats per token."""
    found = []
    for row in rows:
        ids_BT, first = torch.tensor([[*row.prompt_ids, *row.completion_ids]]), len(row.prompt_ids) - 1
        with torch.no_grad():
            base = backbone.model(ids_BT).logits[0, first:-1].log_softmax(-1)
            with lora.attach(backbone):
                adapted = backbone.model(ids_BT).logits[0, first:-1].log_softmax(-1)
        found.append((base.exp() * (base - adapted)).sum(-1).mean())
    return float(torch.stack(found).mean())


@pytest.fixture(scope="module")
def elsewhere(session_backbone: Backbone) -> Callable[[LoRA], float]:
    """How far an adapter is from the backbone on general prompts that no fit here has seen."""
    with rollouts(session_backbone) as writer:
        rows = Replay("backbone", 8, seed=99).rows(session_backbone, writer)
    return lambda lora: distance(session_backbone, lora, rows)


@pytest.fixture(scope="module")
def without_levers(session_backbone: Backbone) -> tuple[Fit, LoRA]:
    return fitted(session_backbone)


def test_the_pull_on_replay_keeps_the_adapter_nearer_on_other_prompts(
    backbone: Backbone, elsewhere: Callable[[LoRA], float], without_levers: tuple[Fit, LoRA]
) -> None:
    (plain, free), (pulled, held) = without_levers, fitted(backbone, **HELD)
    assert elsewhere(held) < 0.5 * elsewhere(free)
    assert pulled.losses[-1] < 0.9 * pulled.losses[0]
    assert len(pulled.kl) == 20 and not plain.kl


def test_the_pull_on_replay_costs_less_of_the_domain_than_the_pull_on_its_completions(backbone: Backbone) -> None:
    on_replay, on_completions = fitted(backbone, **HELD)[0], fitted(backbone, kl_weight=5.0)[0]
    assert on_replay.losses[-1] < on_completions.losses[-1]


def test_what_is_held_to_is_not_learnt(backbone: Backbone) -> None:
    plain, held = fitted(backbone, steps=1)[0], fitted(backbone, steps=1, **HELD)[0]
    assert held.losses == plain.losses and held.num_tokens > plain.num_tokens
    assert held.kl[0] == pytest.approx(0.0, abs=1e-5)


def test_learning_replay_keeps_the_adapter_nearer_on_other_prompts(
    backbone: Backbone, elsewhere: Callable[[LoRA], float], without_levers: tuple[Fit, LoRA]
) -> None:
    assert elsewhere(fitted(backbone, replay_share=0.3)[1]) < 0.8 * elsewhere(without_levers[1])


def test_weight_decay_keeps_the_adapter_nearer(
    backbone: Backbone, elsewhere: Callable[[LoRA], float], without_levers: tuple[Fit, LoRA]
) -> None:
    assert elsewhere(fitted(backbone, weight_decay=20.0)[1]) < 0.8 * elsewhere(without_levers[1])


def test_the_share_of_replay_is_kept_over_the_steps_and_the_batch_stays_as_large() -> None:
    own, again = [Row((1,), (2,))] * 5, [Row((1,), (3,))] * 5
    batches = drawn_batches(SFTSpec(steps=30, batch_size=8, replay_share=0.1), own, again)
    assert {len(batch) for batch in batches} == {8}
    assert sum(row.completion_ids == (3,) for batch in batches for row in batch) == 24
    assert drawn_batches(SFTSpec(steps=30, batch_size=8), own, []) == [own[:1] * 8] * 30


def test_what_the_backbone_wrote_for_one_fit_serves_the_next(backbone: Backbone, tmp_path: Path) -> None:
    first, second = (fitted(backbone, tmp_path / name, replay_share=0.3, steps=4)[0] for name in ("one", "two"))
    assert first.num_generated == second.num_generated == first.counts["written_anew"] > second.counts["written_anew"] == 0
    assert first.losses == second.losses and first.counts["replay_rows"] == 12


def test_a_fit_that_was_killed_while_its_replay_was_written_ends_as_if_it_had_not_been(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.rollouts.CHUNK", 4)
    whole, at_once = fitted(backbone, replay_share=0.3, steps=4)
    steps: list[int] = []

    def kill(step: int, num_steps: int, loss: float) -> None:
        steps.append(step)
        if len(steps) == 5:
            raise KeyboardInterrupt

    spec, lora = SFTSpec(steps=4, batch_size=6, learning_rate=1e-2, num_replay=12, replay_share=0.3), LoRA(LoRASpec(rank=4))
    with pytest.raises(KeyboardInterrupt):
        SFT(spec).fit(backbone, [lora], EXAMPLES, kill, directory=tmp_path / "fit")
    resumed, in_two = fitted(backbone, tmp_path / "fit", replay_share=0.3, steps=4)
    assert steps == [0] * 5 and 0 < resumed.counts["written_anew"] < whole.counts["written_anew"]
    assert (resumed.losses, resumed.num_generated) == (whole.losses, whole.num_generated)
    assert all(torch.equal(at_once.tensors()[key], in_two.tensors()[key]) for key in at_once.tensors())


def test_prompts_of_the_families_are_those_that_may_be_trained_on_and_none_is_of_the_domain(
    backbone: Backbone, writer: Rollouts
) -> None:
    prompts = Replay("families", 40, 0, without="boxes").prompts(backbone, writer)
    trained = {
        name: {reasoning_prompt(example) for example in family.examples("train", 40, 0)} for name, family in FAMILIES.items()
    }
    assert len(prompts) == 40 and not trained["boxes"] & set(prompts)
    assert all(trained[name] & set(prompts) for name in FAMILIES if name != "boxes")
    assert set(prompts) <= set().union(*trained.values())


def test_the_replies_are_the_greedy_ones_of_the_backbone(backbone: Backbone, writer: Rollouts) -> None:
    row = Replay("backbone", 3, 0).rows(backbone, writer)[0]
    ids_BT = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    with torch.no_grad():
        likeliest = backbone.model(ids_BT).logits[0, len(row.prompt_ids) - 1 : -1].argmax(-1)
    assert tuple(likeliest.tolist()) == row.completion_ids


def test_a_backbone_that_repeats_itself_is_refused_with_the_way_out(
    backbone: Backbone, writer: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.replay.PROMPT_TOKENS", 1)
    with pytest.raises(DataError, match=r"takes 150 different prompts .* Lower method.num_replay, or .*families"):
        Replay("backbone", 150, 0).prompts(backbone, writer)


@pytest.mark.parametrize("levers", [{"replay_share": 1.0}, {"replay_share": -0.1}, {"num_replay": 0}])
def test_a_share_that_leaves_no_row_of_the_domain_is_refused(levers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 <= replay_share < 1 and num_replay of at least 1"):
        SFTSpec(**levers)


def test_every_lever_can_be_searched() -> None:
    levers = (
        "method.loss",
        "method.kl_weight",
        "method.kl_on",
        "method.replay_share",
        "method.replay_from",
        "method.weight_decay",
    )
    assert {*levers, "adapter.lora.rank", "adapter.lora.target_modules", "adapter.lora.band"} <= search_marks("sft").keys()


def test_replay_that_uses_up_the_budget_is_refused_before_anything_else_is_written(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"reach token_budget = 20. Raise it, .* \(method.num_replay\)"):
        fitted(backbone, replay_share=0.3, num_replay=2, replay_from="families", token_budget=20)
