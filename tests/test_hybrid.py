"""Recovery by routing: few vectors mend what one vector broke, and not what a random update broke; chance is told apart."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora, random_steering
from small_releases import random_lora, write_release
from stores import store_at
from test_cli import ended

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.lora import LoRA
from engine.decoding.budget import Budget
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.hybrid import HYBRID, Hybrid, greedy_texts, hybrid
from evaluation.task import reasoning_prompt
from evaluation.tasks import TASKS, task_named
from registry.manifest import TrainingHashes, verify
from registry.release import publish
from tuning.categories import fit_categories
from tuning.manifest import hashes_of
from tuning.routing_fit import FittedRouting, RoutingFitSpec, fit_routing

TASK, TOKENS = TASKS["alchemy"], 60
SPEC = RoutingFitSpec(num_categories=3, epochs=6)
BIAS = SPEC.model_copy(update={"num_categories": 1})


def lost_a_vector(testbed: Backbone) -> tuple[Backbone, Adapter]:
    """A backbone that reasons but for one vector that is missing behind a layer, and the adapter that brings it."""
    broken = replace(testbed, model=copy.deepcopy(testbed.model))
    steering = random_steering(broken, 1, size=1.0, seed=3)
    vector_H = steering.tensors()["vector"]
    broken.layers[1].register_forward_hook(lambda layer, inputs, output: output - vector_H)
    return broken, steering


def lost_an_update(testbed: Backbone) -> tuple[Backbone, Adapter]:
    """One whose weights miss a random low-rank update, and the LoRA that is that update."""
    broken = replace(testbed, model=copy.deepcopy(testbed.model))
    lora: LoRA = fitted_lora(broken, 1).scaled(0.7)
    for path, update in lora.contribution().low_rank.items():
        broken.model.get_submodule(path).weight.data -= update.b_OR @ update.a_RI  # type: ignore[operator]
    return broken, lora


@dataclass(frozen=True)
class Tried:
    fitted: FittedRouting
    bias: FittedRouting
    found: Hybrid


def tried(backbone: Backbone, adapter: Adapter) -> Tried:
    engine, profile = TorchEngine(backbone), Profile((adapter,))
    engine.load("one", profile)
    texts = greedy_texts(engine, backbone, "one", [reasoning_prompt(one) for one in TASK.examples("search", 24)], TOKENS)
    fitted, bias = (fit_routing(engine, backbone, "one", texts, spec) for spec in (SPEC, BIAS))
    judged = TASK.examples("select", 24)
    found = hybrid(engine, backbone, profile, fitted.routing, bias.routing, TASK, judged, max_new_tokens=TOKENS)
    assert engine.loaded == ("one",)
    return Tried(fitted, bias, found)


@pytest.fixture(scope="module")
def of_a_vector(testbed: Backbone) -> Tried:
    return tried(*lost_a_vector(testbed))


@pytest.fixture(scope="module")
def of_an_update(testbed: Backbone) -> Tried:
    return tried(*lost_an_update(testbed))


def test_what_one_vector_took_few_vectors_give_back_and_random_ones_do_not(of_a_vector: Tried) -> None:
    for recovery in (of_a_vector.found.answers, of_a_vector.found.texts):
        assert recovery.gain.low > 0 and recovery.shares[HYBRID].low > 0.5
        assert recovery.shares["bias only"].low > 0.5  # the one vector for all is the one that was lost
        assert recovery.shares["random vectors"].high < min(recovery.shares[HYBRID].low, recovery.shares["bias only"].low)
        assert not recovery.above_controls


def test_a_random_update_comes_back_in_no_answer(of_an_update: Tried) -> None:
    answers = of_an_update.found.answers
    assert answers.gain.low > 0 and answers.shares[HYBRID].high < 0.2


def test_which_category_a_vector_is_of_counts_where_much_is_lost(of_an_update: Tried) -> None:
    shares = of_an_update.found.texts.shares
    assert shares[HYBRID].low > shares["random categories"].high
    assert shares[HYBRID].low > shares["random vectors"].high
    assert shares[HYBRID].low > shares["random places"].high


def test_the_fraction_steered_is_where_the_models_differ_and_random_places_are_as_many(of_a_vector: Tried) -> None:
    steered, fitted = of_a_vector.found.steered, of_a_vector.fitted
    assert 0 < steered[HYBRID] < 0.5
    assert steered["random places"] == pytest.approx(steered[HYBRID], abs=0.05)
    assert sum(fitted.by_category) == fitted.num_places < fitted.num_tokens


def test_held_out_places_grow_likelier_and_never_less_likely(of_a_vector: Tried, of_an_update: Tried) -> None:
    for one in (of_a_vector, of_an_update):
        for fitted in (one.fitted, one.bias):
            assert fitted.alone.agreement == 0.0 and fitted.steered.nats < fitted.alone.nats
    assert of_a_vector.bias.steered.agreement > 0.9


def test_an_adapter_that_changes_no_token_fits_no_routing(testbed: Backbone) -> None:
    engine = TorchEngine(testbed)
    engine.load("one", Profile((fitted_lora(testbed, 1).scaled(0.0),)))
    texts = greedy_texts(engine, testbed, "one", [reasoning_prompt(one) for one in TASK.examples("search", 3)], 20)
    with pytest.raises(ValueError, match="0 of 3 texts have such a place"):
        fit_routing(engine, testbed, "one", texts, SPEC)


def test_where_the_adapter_gained_nothing_no_recovery_is_told(testbed: Backbone) -> None:
    # The backbone solves the task, so that a LoRA which spoils it gains nothing in answers.
    engine, profile = TorchEngine(testbed), Profile((fitted_lora(testbed, 1),))
    engine.load("one", profile)
    texts = greedy_texts(engine, testbed, "one", [reasoning_prompt(one) for one in TASK.examples("search", 6)], 20)
    bias = fit_routing(engine, testbed, "one", texts, BIAS.model_copy(update={"epochs": 1})).routing
    found = hybrid(engine, testbed, profile, bias, bias, TASK, TASK.examples("select", 6), max_new_tokens=40)
    assert not found.answers.shares and "is not shown to be above 0" in found.answers.not_measurable
    assert found.as_dict()["answers"]["recovery"] == {} and found.tokens > 0


def test_categories_of_well_parted_states_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    centres_KH = 20 + 5 * torch.randn(4, 16, generator=generator)  # states are not centred on 0
    kind_N = torch.arange(4).repeat(20)
    encoder = fit_categories(centres_KH[kind_N] + 0.3 * torch.randn(80, 16, generator=generator), 4)
    fresh_NH = centres_KH[kind_N] + 0.3 * torch.randn(80, 16, generator=generator)
    found_N = (fresh_NH @ encoder.weight_KH.T + encoder.bias_K).argmax(dim=1)
    assert all(len(set(found_N[kind_N == kind].tolist())) == 1 for kind in range(4)) and len(set(found_N.tolist())) == 4
    assert encoder.explained > 0.9


def test_more_categories_than_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="got 5 for 4"):
        fit_categories(torch.randn(5, 8), 4)


def test_an_adapter_that_writes_what_the_backbone_writes_is_told_in_a_sentence(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "same", backbone, random_lora(backbone, 1, size=0.0), domain="icd10-chapter", protected=["grammar"])
    asked = ("hybrid", "same", "--home", "home", "--items", "8", "--max-tokens", "4", "--keep", "kept")
    assert ended(asked, tmp_path, monkeypatch) == 2
    assert "0 of 8 texts have such a place" in capsys.readouterr().err and not (tmp_path / "kept").exists()


def test_a_policy_alone_has_no_gain_to_recover(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "alone", backbone, policy=DecodingPolicy(budget=Budget(max_trace_tokens=8)))
    assert ended(("hybrid", "alone", "--home", "home", "--items", "8"), tmp_path, monkeypatch) == 2
    assert "alone has no adapter" in capsys.readouterr().err


def test_the_command_tells_recovery_with_its_controls_and_keeps_a_profile_that_runs(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "one", backbone, random_lora(backbone, 1), domain="icd10-chapter", protected=["grammar"])
    asked = ("hybrid", "one", "--home", "home", "--items", "8", "--categories", "2", "--max-tokens", "12")
    assert ended((*asked, "--keep", "kept", "--json"), tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["steered"]) == {HYBRID, "random categories", "random vectors", "random places", "bias only"}
    assert told["fit"]["places"] > 0 and told["answers"]["not_measurable"]
    kept = Profile.load(tmp_path / "kept")
    assert kept.routing is not None and kept.routing.num_categories == 2
    TorchEngine(backbone).load("kept", kept)
    source, routed = verify(tmp_path / "one"), verify(tmp_path / "kept")
    assert (routed.recipe, routed.profile) == (source.recipe, source.profile) and routed.derived["categories"] == 2
    fitted_on = hashes_of(task_named("icd10-chapter").examples("search", 8))
    assert TrainingHashes.read(tmp_path / "kept").rows == TrainingHashes.read(tmp_path / "one").rows | fitted_on.rows
    assert publish(store_at(tmp_path / "home"), "routed", tmp_path / "kept").version == 1
    assert ended((*asked, "--direct"), tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "recovered by hybrid" in said and "tokens steered: hybrid" in said
    assert ended((*asked, "--keep", "kept"), tmp_path, monkeypatch) != 0
    assert "kept is there" in capsys.readouterr().err
