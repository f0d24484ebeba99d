"""The method `compression`: a recipe for it, and a fit that leaves a vector in the adapter it was given."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.steering import Steering, SteeringSpec
from evaluation.tasks.alchemy import ALCHEMY
from tuning.errors import BadRecipe
from tuning.ground import new_adapters
from tuning.methods import METHODS
from tuning.methods.compression import Compression, CompressionMethodSpec
from tuning.recipe import METHOD_NAME, Recipe, search_marks

ONE_STEP = ALCHEMY.at_length(1)
SPEC: dict[str, Any] = {"concise": "answer", "vector": "ces", "layers": (3,), "eps": 1.0, "tolerance": 1.0, "items": 12}


def compression(**values: Any) -> Recipe:
    method = {"name": "compression", **values}
    return Recipe(name="concise", domain="boxes", protected=("arithmetic",), adapter={"kind": "steering"}, method=method)  # type: ignore[arg-type]


def test_a_fit_leaves_its_vector_in_the_adapter_that_it_was_given(testbed: Backbone) -> None:
    spec, steering = CompressionMethodSpec(**SPEC, steps=12, max_new_tokens=40), Steering(SteeringSpec())
    digest, heard = testbed.weights_digest(), list[tuple[int, int]]()
    fit = Compression(spec).fit(
        testbed, [steering], ONE_STEP.examples("train", 12), lambda step, of, loss: heard.append((step, of)), task=ONE_STEP
    )
    assert steering.record is not None and steering.layer == 3 and steering.record.eps == 1.0
    assert fit.kl == (steering.record.kl,) and fit.num_generated > 0 and heard[-1] == (1, 1)
    assert testbed.weights_digest() == digest


def test_a_fit_without_a_vector_or_a_task_is_refused(testbed: Backbone) -> None:
    method = Compression(CompressionMethodSpec())
    given: list[Adapter] = [LoRA(LoRASpec())]
    for adapters, task in ((given, ONE_STEP), ([Steering(SteeringSpec())], None)):
        with pytest.raises(BadRecipe, match="one steering vector on a task"):
            method.fit(testbed, adapters, [], task=task)


def test_a_recipe_of_it_makes_a_steering_adapter_and_no_other(testbed: Backbone) -> None:
    (adapter,) = new_adapters(compression(), testbed)
    assert isinstance(adapter, Steering)
    with pytest.raises(ValueError, match="trains steering, but adapter.kind is 'lora'"):
        Recipe(name="x", domain="boxes", protected=("arithmetic",), method={"name": "compression"})  # type: ignore[arg-type]


def test_a_recipe_of_it_is_the_same_again_from_a_manifest() -> None:
    recipe = compression(eps=0.1, layers=(0.5, 18), concise="answer")
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe and isinstance(again.method, CompressionMethodSpec)
    assert again.method.compression.layers == (0.5, 18) and again.method.compression.ces.eps == 0.1


def test_a_sweep_draws_no_vector_unless_it_is_told_to() -> None:
    marks = search_marks("sft")
    assert "steering" not in marks["adapter.kind"].options  # type: ignore[union-attr]
    assert "compression" in METHODS and "compression" not in marks[METHOD_NAME].options  # type: ignore[union-attr]
    own = search_marks("compression")
    assert {"method.eps", "method.vector", "method.pooling"} <= set(own) and "adapter.lora.rank" not in own


def test_another_method_than_its_own_takes_the_kind_that_it_trains() -> None:
    recipe = Recipe(name="x", domain="boxes", protected=("arithmetic",)).with_values({"method.name": "compression"})
    assert recipe.adapter.kind == "steering"


@pytest.mark.parametrize(("name", "value"), [("eps", 0.0), ("items", 2), ("layers", ()), ("rate", -1.0), ("vector", "pca")])
def test_impossible_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        CompressionMethodSpec(**{name: value})  # type: ignore[arg-type]
