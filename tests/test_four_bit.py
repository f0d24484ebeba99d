"""A backbone in 4 bits: what is fitted around it, and what is told apart from the backbone in its own dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.adapter import Stack
from adapters.backbone import TESTBED, Backbone
from adapters.errors import UnknownBackbone
from adapters.four_bit import PACKAGE, hold_in_four_bits, whole_weight
from adapters.lora import LoRA, LoRASpec
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.tasks import TASKS
from registry.manifest import BackboneIdentity
from tuning.errors import BadRecipe
from tuning.methods.sft import SFT, SFTSpec
from tuning.recipe import Recipe

EXAMPLES = TASKS["alchemy"].examples("train", 8)


@pytest.fixture(scope="module")
def four_bit() -> Backbone:
    pytest.importorskip(PACKAGE)
    return Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32, format="nf4")


@pytest.mark.slow
def test_the_linear_layers_take_less_than_a_fifth_and_nothing_else_is_rounded(testbed: Backbone, four_bit: Backbone) -> None:
    def linear_bytes(backbone: Backbone) -> int:
        linears = [module for module in backbone.decoder.modules() if isinstance(module, torch.nn.Linear)]
        states = [getattr(linear.weight, "quant_state", None) for linear in linears]
        return sum(linear.weight.nbytes for linear in linears) + sum(state.absmax.nbytes for state in states if state)

    assert linear_bytes(four_bit) < linear_bytes(testbed) / 5
    assert torch.equal(four_bit.embeddings.weight, testbed.embeddings.weight)
    assert four_bit.fingerprint == testbed.fingerprint and four_bit.numbers != testbed.numbers


@pytest.mark.slow
def test_its_logits_are_near_those_of_the_backbone_and_not_the_same(testbed: Backbone, four_bit: Backbone) -> None:
    ids = torch.tensor([testbed.chat_ids(EXAMPLES[0].question)])
    with torch.no_grad():
        whole, rounded = (one.model(ids).logits.log_softmax(-1) for one in (testbed, four_bit))
    kl = (whole.exp() * (whole - rounded)).sum(-1).mean()
    assert 0 < kl < 0.2  # 1.4 where rows are read with the scales of others


@pytest.mark.slow
def test_a_lora_is_fitted_around_it_and_its_weights_stay_bit_for_bit(four_bit: Backbone) -> None:
    before, lora = four_bit.weights_digest(), LoRA(LoRASpec(rank=4))
    fit = SFT(SFTSpec(steps=15, batch_size=8, learning_rate=1e-2, kl_weight=0.1)).fit(four_bit, [lora], EXAMPLES)
    assert fit.losses[-1] < 0.9 * fit.losses[0]
    assert four_bit.weights_digest() == before


@pytest.mark.slow
def test_the_engine_serves_the_lora_on_it_as_it_was_fitted(four_bit: Backbone) -> None:
    lora = LoRA(LoRASpec(rank=4))
    SFT(SFTSpec(steps=4, batch_size=4, learning_rate=1e-2)).fit(four_bit, [lora], EXAMPLES[:4])
    ids = four_bit.chat_ids(EXAMPLES[0].question)
    with torch.no_grad(), lora.attach(four_bit):
        attached = four_bit.model(torch.tensor([ids])).logits[0, -1].argmax()
    engine = TorchEngine(four_bit)
    engine.load("own", Profile((lora,)))
    (written,) = engine.complete([GenerationRequest(ids, "own", 1, temperature=0.0)])
    engine.close()
    assert written.token_ids[0] == int(attached)
    assert Stack((lora,)).contribution().low_rank


@pytest.mark.slow
def test_a_weight_in_four_bits_is_told_as_it_acts(testbed: Backbone, four_bit: Backbone) -> None:
    whole, rounded = (whole_weight(backbone.layers[0].self_attn.q_proj) for backbone in (testbed, four_bit))
    assert whole.shape == rounded.shape
    assert 0 < float((whole - rounded).norm() / whole.norm()) < 0.15


@pytest.mark.slow
def test_a_layer_that_comes_out_as_something_else_is_refused() -> None:
    pytest.importorskip(PACKAGE)
    # On a CPU bitsandbytes 0.50 reads rows that its blocks do not divide with the scales of others.
    decoder = torch.nn.Sequential(torch.nn.Linear(48, 48, bias=False))
    decoder[0].weight.data *= torch.logspace(-2, 0, 48)[:, None]
    with pytest.raises(UnknownBackbone, match=r"within 20%, but 0 \(48 to 48\) came out of bitsandbytes changed by \d+%"):
        hold_in_four_bits(decoder, torch.float32, "cpu")


def test_without_the_package_it_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownBackbone, match=r"needs the package bitsandbytes.*pip install 'graftline\[bnb\]'"):
        Backbone.load(str(TESTBED), device="cpu", format="nf4")


def test_a_manifest_of_before_is_the_same_to_the_letter() -> None:
    full, rounded = (BackboneIdentity(name="b", fingerprint="f", dtype="float32", format=one) for one in ("full", "nf4"))
    assert full.model_dump_json() == '{"name":"b","fingerprint":"f","dtype":"float32"}'
    assert BackboneIdentity.model_validate_json(rounded.model_dump_json()).format == "nf4"


def test_a_recipe_in_four_bits_is_another_one_and_not_for_vllm() -> None:
    recipe = Recipe(name="own", domain="icd10")
    assert recipe.with_values({"backbone_format": "full"}).digest() == recipe.digest()
    assert recipe.with_values({"backbone_format": "nf4"}).digest() != recipe.digest()
    with pytest.raises(BadRecipe, match="vllm.*serves a backbone in its own dtype, but backbone_format is 'nf4'"):
        recipe.with_values({"backbone_format": "nf4", "engine": "vllm"})


def test_readings_of_a_backbone_in_four_bits_are_kept_apart(backbone: Backbone, tmp_path: Path) -> None:
    from dataclasses import replace

    from evaluation.admission import stored_admission
    from evaluation.base_cache import BaseCache
    from evaluation.measures import MEASURES

    rounded, cache = replace(backbone, format="nf4"), BaseCache(tmp_path, "float32")
    measure, task = MEASURES["choice_accuracy"], TASKS["alchemy"]
    assert cache.key(measure, rounded, task, EXAMPLES) != cache.key(measure, backbone, task, EXAMPLES)
    assert stored_admission(rounded, task, tmp_path) is None
