"""What a recipe's adapters must be for the engine that is to serve them: told before anything is fitted."""

from __future__ import annotations

from adapters.backbone import Backbone
from adapters.errors import AdapterError
from adapters.files import new_adapter
from adapters.lora import LoRA, LoRASpec
from adapters.spec import Choices
from engine.profile import Profile
from engine.vllm.gate import admitted, refuse_targets
from engine.vllm.options import MAX_RANK
from tuning.continuing import started
from tuning.errors import BadRecipe
from tuning.recipe import Recipe, narrowed

TARGETS = "adapter.lora.target_modules"


def check_servable(recipe: Recipe, backbone: Backbone) -> None:
    """BadRecipe where the sweep could choose what the recipe's engine refuses on this backbone."""
    kinds = recipe.adapter.kind.split("+")
    if recipe.engine != "vllm" or not ("lora" in kinds or "adapter.kind" in recipe.search):
        return
    try:
        if recipe.adapter.warm_start is not None:
            kept = started(recipe, backbone, [new_adapter(getattr(recipe.adapter, kind)) for kind in kinds])
            admitted(recipe.adapter.warm_start, Profile(tuple(kept)), backbone, MAX_RANK)
            return
        for targets in _targets(recipe):
            spec = recipe.adapter.lora.model_copy(update={"target_modules": targets, "band": "all"})
            refuse_targets(f"{TARGETS} = {targets!r}", LoRA(LoRASpec.model_validate(spec.model_dump())).target_paths(backbone))
    except AdapterError as error:
        raise BadRecipe(f'engine = "vllm" fits what vLLM serves, but {error}') from error


def _targets(recipe: Recipe) -> tuple[str, ...]:
    """Those that the sweep may choose."""
    if TARGETS not in recipe.search:
        return (recipe.adapter.lora.target_modules,)
    mark = narrowed(recipe, TARGETS, recipe.method.name)
    assert isinstance(mark, Choices)
    return tuple(str(option) for option in mark.options)
