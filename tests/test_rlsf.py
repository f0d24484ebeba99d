"""Self-feedback: confidence that can be trusted is learnt from, any other is refused, and a coin in its place teaches nothing."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.backbone import TESTBED, Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.decoding.cot_decoding import Branch, Decoded
from engine.engine import Completion, Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.errors import DataError, MissingPackage
from evaluation.task import Example, Split, Task
from evaluation.tasks.alchemy import ALCHEMY
from tuning.errors import BadRecipe
from tuning.loop import OnStep
from tuning.methods.dpo import Pair
from tuning.methods.method import Fit
from tuning.methods.rlsf import RLSF, RLSFSpec, pair_of, parted, preferred
from tuning.rollouts import WRITER, own_words, rollouts
from tuning.self_feedback import Branched, at_random, branched, calibration, counted, published, surest_over_least, trusted

# Of one depth: an easy question is another thing to be sure of than a hard one.
EXAMPLES = [example for example in ALCHEMY.examples("train", 400) if example.group.startswith("alchemy/3")][:100]
ASKED = {"num_branches": 3, "num_questions": 24, "num_labelled": 48, "max_trace_tokens": 40, "min_auroc": 0.55}
SMALL = ASKED | {"steps": 6, "batch_size": 4, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Coin:
    """What is right hangs on nothing that a model could be sure of."""

    name: str = "coin"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]

    def is_right(self, example: Example, completion: str) -> bool:
        return random.Random(f"{example.id}/{completion}").random() < 0.5


def spec(**values: Any) -> RLSFSpec:
    return RLSFSpec(**(SMALL | values))


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backbone]:
    """The tiny model with noise in its weights: right every fifth time, and surer then. What it wrote is kept."""
    backbone = Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.add_(0.5 * weight.std() * torch.randn(weight.shape, generator=generator))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield backbone


@pytest.fixture(scope="module")
def labelled(unsure: Backbone) -> list[Branched]:
    return asked_of(unsure, parted(EXAMPLES, spec()).labelled)


@pytest.fixture(scope="module")
def asked(unsure: Backbone) -> list[Branched]:
    return asked_of(unsure, parted(EXAMPLES, spec()).asked)


def asked_of(backbone: Backbone, examples: Sequence[Example]) -> list[Branched]:
    with rollouts(backbone, directory=own_words(backbone, "rlsf")) as writer:
        return branched(writer, backbone, spec().policy, examples)


def fitted(
    backbone: Backbone, directory: Path, values: RLSFSpec, on_step: OnStep | None = None, task: Task = ALCHEMY
) -> tuple[Fit, LoRA]:
    lora = LoRA(LoRASpec(rank=4))
    return RLSF(values).fit(backbone, [lora], EXAMPLES, on_step, task=task, directory=directory), lora


def question(*margins: tuple[str, float]) -> Branched:
    example = Example(id="q", question="q", answer="4", group="q")
    return Branched(example, (1,), Decoded(tuple(Branch("so\n", answer, margin) for answer, margin in margins)))


def test_confidence_that_predicts_what_is_right_is_trusted(labelled: list[Branched]) -> None:
    found = trusted(ALCHEMY, labelled, 0.55)
    assert 0.55 < found.low < found.auroc < found.high and found.within is not None
    with pytest.raises(DataError, match="the lower end of the 95 % interval"):
        trusted(ALCHEMY, labelled, (found.low + found.auroc) / 2)


def test_confidence_that_predicts_nothing_is_refused_with_the_value_and_the_way_out(
    unsure: Backbone, labelled: list[Branched], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"must be above 0.55, but it is 0.[345]\d \(AUROC 0.[45]\d on 1\d\d branches of 48 rows"):
        trusted(Coin(), labelled, 0.55)
    with pytest.raises(DataError, match="or take a method that goes by the answer"):
        fitted(unsure, tmp_path, spec(), task=Coin())
    assert not list(tmp_path.iterdir())


def test_where_hardly_any_row_is_right_or_wrong_nothing_can_be_shown(labelled: list[Branched]) -> None:
    with pytest.raises(DataError, match=r"8 rows with a right branch and 8 with a wrong one, but of 4 rows \d and 4 have one"):
        trusted(ALCHEMY, labelled[:4], 0.6)


def preference(backbone: Backbone, pairs: Sequence[Pair], lora: LoRA | None) -> float:
    """Mean log-probability of the chosen completions minus that of the rejected ones."""
    engine = TorchEngine(backbone)
    if lora:
        engine.load("fitted", Profile((lora,)))
    both = [Continuation(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    scores = [sum(row) for row in engine.score(both, "fitted" if lora else None)]
    engine.close()
    return sum(scores[::2]) / len(pairs) - sum(scores[1::2]) / len(pairs)


@pytest.fixture(scope="module")
def real(unsure: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, LoRA]:
    before = unsure.weights_digest()
    done = fitted(unsure, tmp_path_factory.mktemp("real"), spec())
    assert unsure.weights_digest() == before
    return done


def test_the_surer_branch_becomes_likelier_than_the_other(
    unsure: Backbone, asked: list[Branched], real: tuple[Fit, LoRA]
) -> None:
    fit, lora = real
    pairs = [pair_of(unsure, one) for one in preferred(asked, spec())]
    assert preference(unsure, pairs, lora) > preference(unsure, pairs, None) + 2.0
    assert fit.losses[-1] < 0.9 * fit.losses[0] and fit.numbers["margin"][-1] > 0.2 and len(fit.losses) == SMALL["steps"]
    assert fit.counts["chosen_right"] > fit.counts["rejected_right"]
    assert fit.counts["pairs"] == len(pairs) and fit.counts["auroc_low"] > 0.55 and fit.num_generated > 0 < fit.num_tokens
    names = ("accuracy", "confidence", "brier", "calibration_error")
    assert {f"{name}_{when}" for name in names for when in ("before", "after")} <= set(fit.counts)


def test_a_coin_in_the_place_of_confidence_raises_neither_it_nor_what_it_would_prefer(
    unsure: Backbone, asked: list[Branched], real: tuple[Fit, LoRA], tmp_path: Path
) -> None:
    coin, turned = fitted(unsure, tmp_path, spec(preferences="random"))
    assert coin.counts["pairs"] == real[0].counts["pairs"] and coin.counts["auroc"] == real[0].counts["auroc"]
    assert coin.counts["confidence_after"] < coin.counts["confidence_before"] + 0.01
    pairs = [pair_of(unsure, one) for one in preferred(asked, spec())]
    base, by_confidence, by_coin = (preference(unsure, pairs, lora) for lora in (None, real[1], turned))
    assert by_coin - base < 0.5 * (by_confidence - base)


def test_replies_that_are_read_after_the_fit_are_counted_as_written_for_it(unsure: Backbone, real: tuple[Fit, LoRA]) -> None:
    (fit, lora), rows = real, parted(EXAMPLES, spec())
    with rollouts(unsure, directory=own_words(unsure, "rlsf")) as before, rollouts(unsure, [lora]) as after:
        branched(before, unsure, spec().policy, [*rows.labelled, *rows.asked])
        branched(after, unsure, spec().policy, rows.labelled, WRITER)
    assert fit.num_generated == before.num_used + after.num_used and fit.counts["written_after"] == after.num_used > 0


def test_a_kill_in_a_rollout_and_one_in_the_fit_change_nothing(
    unsure: Backbone, real: tuple[Fit, LoRA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    monkeypatch.setattr("tuning.rollouts.CHUNK", 64)
    whole, at_once = real
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path / "cache"))
    complete, calls, seen = TorchEngine.complete, list[int](), list[int]()

    def killed(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
        calls.append(len(requests))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return complete(engine, requests)

    def kill(step: int, steps: int, loss: float) -> None:
        seen.append(step)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            fitted(unsure, tmp_path / "killed", spec())
    with pytest.raises(KeyboardInterrupt):
        fitted(unsure, tmp_path / "killed", spec(), kill)
    seen.clear()
    resumed, in_parts = fitted(unsure, tmp_path / "killed", spec(), lambda step, steps, loss: seen.append(step))
    assert [step for step in seen if step] == [4, 5, 6]
    assert resumed.counts["written_anew"] == resumed.counts["written_after"] > 0  # what stands before the fit was kept
    assert (resumed.numbers, resumed.num_tokens, resumed.num_generated) == (whole.numbers, whole.num_tokens, whole.num_generated)
    for name in set(whole.counts) - {"prepare_s", "written_anew"}:
        assert resumed.counts[name] == pytest.approx(whole.counts[name], abs=1e-5), name
    assert all(torch.equal(at_once.tensors()[key], in_parts.tensors()[key]) for key in at_once.tensors())


def test_the_surest_branch_is_preferred_to_the_least_sure_one_if_they_differ_and_are_apart() -> None:
    (pair,) = surest_over_least(question(("4", 0.6), ("5", 0.9), ("6", 0.2), ("", math.nan)), 0.05)
    assert (pair.chosen.answer, pair.rejected.answer) == ("5", "6")
    for none in (question(("4", 0.9), (" 4.", 0.1)), question(("4", 0.9), ("5", 0.87)), question(("4", 0.9), ("", math.nan))):
        assert not surest_over_least(none, 0.05)


def test_the_published_rule_takes_every_sure_branch_over_every_less_sure_one() -> None:
    found = published(question(("4", 0.95), ("5", 0.9), ("4", 0.5), ("6", 0.2)), 0.9)
    said = [(one.chosen.margin, one.rejected.margin) for one in found]
    assert said == [(0.95, 0.9), (0.95, 0.5), (0.95, 0.2), (0.9, 0.5), (0.9, 0.2)]


def test_a_question_without_a_pair_is_counted_by_its_cause() -> None:
    questions = [question(("4", 0.9), ("4", 0.1)), question(("4", 0.9), ("5", 0.88)), question(("", math.nan), ("4", 0.3))]
    assert counted(questions, []) == {
        "questions": 3,
        "pairs": 0,
        "questions_without_gap": 1,
        "questions_alike": 2,
        "branches_without_answer": 1,
    }


def test_without_any_pair_the_way_out_is_said(asked: list[Branched]) -> None:
    with pytest.raises(DataError, match=r"none of 24 questions gave a pair: in \d+ .+ without a gap of 1. Lower method.min_gap"):
        preferred(asked, spec(min_gap=1.0))
    with pytest.raises(DataError, match=r"a confidence of 0.99. Lower method.threshold"):
        preferred([question(("4", 0.9), ("5", 0.1))], spec(pairs="published", threshold=0.99))


def test_a_coin_turns_about_half_of_the_pairs_round(asked: list[Branched]) -> None:
    sure = surest_over_least(question(("4", 0.9), ("5", 0.1)), 0.05) * 200
    turned = sum(one.chosen.answer == "5" for one in at_random(sure, 0))
    assert 70 <= turned <= 130 and at_random(sure, 0) == at_random(sure, 0) != at_random(sure, 1)
    assert len(preferred(asked, spec(preferences="random"))) == len(preferred(asked, spec()))


def test_a_greedy_branch_without_an_answer_is_wrong_and_not_sure() -> None:
    found = calibration(ALCHEMY, [question(("", math.nan), ("4", 0.9)), question(("4", 1.0))], "now")
    assert (found["accuracy_now"], found["confidence_now"], found["brier_now"]) == pytest.approx((0.5, 0.5, 0.0))


def test_no_group_is_both_labelled_and_asked() -> None:
    codes = [Example(id=f"{code}", question="", answer="", group=f"{code // 3}") for code in range(100)]
    found = parted(codes, spec())
    assert len(found.labelled) == 48 and 0 < len(found.asked) <= 24
    assert not {example.group for example in found.labelled} & {example.group for example in found.asked}
    assert parted(codes, spec(seed=1)).labelled != found.labelled


def test_of_few_templates_each_is_both_labelled_and_asked() -> None:
    found = parted(EXAMPLES, spec())
    assert {example.group for example in found.labelled} == {example.group for example in found.asked}
    assert not {example.id for example in found.labelled} & {example.id for example in found.asked}
    with pytest.raises(DataError, match=r"keeps 100 labelled rows apart .+ of 3 groups leave 0 to ask. Lower method.num_label"):
        RLSF(spec(num_labelled=100)).check(EXAMPLES, ALCHEMY)


def test_branches_that_use_up_the_budget_and_rows_without_room_are_refused(unsure: Backbone, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reach token_budget = 100. .*\(method.num_questions, method.num_labelled, "):
        fitted(unsure, tmp_path, spec(token_budget=100))
    with pytest.raises(DataError, match=r"but '.+' has \d+. Lower method.max_trace_tokens"):
        fitted(unsure, tmp_path, spec(max_trace_tokens=5000))


def test_what_it_cannot_fit_is_refused_by_name(unsure: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRecipe, match="'rlsf' trains lora, but adapter.kind is 'softcot'"):
        RLSF.check_kind("softcot")
    with pytest.raises(BadRecipe, match="fits one LoRA, but was given 1 adapters or another kind"):
        RLSF(spec()).fit(unsure, [SoftCoT(SoftCoTSpec())], EXAMPLES, task=ALCHEMY)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "trl" else found(name, package))
    with pytest.raises(MissingPackage, match=r"'rlsf' fits a LoRA with a trainer of TRL, but trl cannot be imported. Install"):
        fitted(unsure, tmp_path, spec())


@pytest.mark.parametrize(
    "values",
    [
        {"beta": 0.0},
        {"num_labelled": 0},
        {"num_labelled": 7},
        {"min_auroc": 0.4},
        {"num_branches": 1},
        {"min_gap": 0.0},
        {"sft_weight": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="but got"):
        spec(**values)
