"""Recipes of what vLLM is to serve: a sweep draws nothing that the vLLM engine refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from fitted import fitted_lora
from small_studies import small
from torch import nn

from adapters.backbone import Backbone
from adapters.files import new_adapter
from engine.profile import Profile
from engine.vllm.gate import admitted
from engine.vllm.options import MAX_RANK
from evaluation.task import Example
from tuning.errors import BadRecipe
from tuning.manifest import complete
from tuning.recipe import Recipe
from tuning.servable import check_servable
from tuning.space import suggest

SEARCH = tuple(f"adapter.lora.{field}" for field in ("rank", "alpha", "dropout", "target_modules", "band"))


def for_vllm(backbone_directory: Path, **values: object) -> Recipe:
    return small(backbone_directory, **{"adapter.kind": "lora", "engine": "vllm", **values})


def test_the_engine_admits_whatever_the_sweep_draws(backbone: Backbone, backbone_directory: Path) -> None:
    recipe = for_vllm(backbone_directory, search=("adapter.kind", *SEARCH))
    check_servable(recipe, backbone)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(12):
        drawn = recipe.with_values(dict(suggest(study.ask(), recipe))).adapter
        if "lora" not in drawn.kind or drawn.lora.band == "lower":  # of two layers, the lower third is none
            continue
        lora = new_adapter(drawn.lora)
        with lora.attach(backbone):
            pass
        assert admitted("drawn", Profile((lora,)), backbone, MAX_RANK).low_rank


def test_a_backbone_of_other_layers_is_refused_before_anything_is_fitted(backbone: Backbone, backbone_directory: Path) -> None:
    strange = replace(backbone, model=copy.deepcopy(backbone.model))
    strange.layers[0].mlp.router = nn.Linear(32, 4)
    recipe = for_vllm(backbone_directory, search=SEARCH)
    with pytest.raises(BadRecipe, match="all-linear.*router"):
        check_servable(recipe, strange)
    check_servable(recipe.model_copy(update={"engine": "torch"}), strange)
    narrow = for_vllm(backbone_directory, search=SEARCH, ranges={"adapter.lora.target_modules": ("attention", "mlp")})
    check_servable(narrow, strange)


def test_a_warm_start_that_vllm_refuses_is_refused(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    lora = fitted_lora(backbone, 1, rank=2)
    assert lora._tensors is not None
    lora._tensors |= {
        key.replace("lora_B.weight", "lora_B.bias"): torch.ones(tensor.shape[0])
        for key, tensor in lora._tensors.items()
        if "lora_B" in key
    }
    rows = [Example(id="0", question="What comes after 1?", answer="2", group="0")]
    complete(tmp_path, small(backbone_directory, **{"adapter.kind": "lora"}), backbone, Profile((lora,)), 1.0, rows)
    given = {"adapter.warm_start": str(tmp_path), "adapter.lora.rank": 2}
    recipe = for_vllm(backbone_directory, search=("method.learning_rate",), **given)
    with pytest.raises(BadRecipe, match="lora_bias"):
        check_servable(recipe, backbone)


@pytest.mark.parametrize(("field", "value"), [("adapter.kind", "steering"), ("adapter.lora.rank", 128)])
def test_what_vllm_never_serves_is_no_recipe_for_it(backbone_directory: Path, field: str, value: object) -> None:
    with pytest.raises(BadRecipe, match="vllm"):
        for_vllm(backbone_directory, **{field: value})


def test_naming_the_usual_engine_makes_no_other_recipe(backbone_directory: Path) -> None:
    plain = small(backbone_directory, **{"adapter.kind": "lora"})
    named = small(backbone_directory, **{"adapter.kind": "lora", "engine": "torch"})
    assert plain.digest() == named.digest() != for_vllm(backbone_directory).digest()
