"""Which recipes make a sequence, and in which orders their domains come."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from evaluation.tasks import task_named
from tuning.errors import BadRecipe
from tuning.recipe import GIVEN_BY_START, Recipe
from tuning.sequence_fits import continuing
from tuning.sequence_policies import Policy

Order = tuple[str, ...]  # names of tasks
MAX_ORDERS = 24  # of four domains
_THOUGHTS: dict[str, tuple[str, ...]] = {"softcot": ("softcot",), "lora+softcot": ("softcot",)}
_SHAPES = {
    "lora": ("rank", "target_modules", "band"),
    "softcot": ("num_thoughts", "num_chains", "assistant_layers", "assistant", "static"),
}


def orders_of(names: Sequence[str], asked: Literal["given", "all"] | int) -> tuple[Order, ...]:
    """BadRecipe for more than there are, or than anybody would wait for."""
    given, count = tuple(names), math.factorial(len(names))
    if asked == "given":
        return (given,)
    if asked == "all" and count > MAX_ORDERS:
        raise BadRecipe(
            f"All orders are read of at most {MAX_ORDERS}, but {len(names)} domains have {count}. Give a number of orders."
        )
    wanted = count if asked == "all" else int(asked)
    if wanted > count:
        raise BadRecipe(f"{len(names)} domains have {count} orders, but {wanted} were asked for. Ask for fewer.")
    found = dict.fromkeys([given, given[::-1]])
    if len(names) <= 6:
        others = list(itertools.permutations(given))
        random.Random(0).shuffle(others)
        found.update(dict.fromkeys(others))
    rng = random.Random(0)
    while len(found) < wanted:
        found[tuple(rng.sample(given, len(given)))] = None
    return tuple(found)[:wanted]


def check_recipes(
    recipes: Sequence[Recipe], policies: Sequence[Policy], sweeping: bool = False, weights: Sequence[float] = ()
) -> None:
    """BadRecipe for recipes that are no sequence, before anything is loaded or written. `weights` are a merge's, or none."""
    if len(recipes) < 2:
        raise BadRecipe(f"A sequence has two domains or more, but got {len(recipes)} recipe. Name the others too.")
    first = recipes[0]
    names = [task_named(recipe.domain).name for recipe in recipes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadRecipe(f"A sequence has each domain once, but {', '.join(map(repr, twice))} is there twice. Leave one out.")
    for recipe in recipes[1:]:
        if recipe.backbone != first.backbone:
            raise BadRecipe(
                f"A sequence stands on one frozen backbone, but {first.name!r} names {first.backbone!r} and {recipe.name!r} "
                f"{recipe.backbone!r}. Give both the same one."
            )
        if recipe.backbone_format != first.backbone_format:
            raise BadRecipe(
                f"A sequence stands on one frozen backbone, but backbone_format is {first.backbone_format!r} in {first.name!r} "
                f"and {recipe.backbone_format!r} in {recipe.name!r}. Give both the same one."
            )
        if recipe.evaluation.precision != first.evaluation.precision:
            raise BadRecipe(
                f"All stages are read in one precision, but evaluation.precision is {first.evaluation.precision!r} in "
                f"{first.name!r} and {recipe.evaluation.precision!r} in {recipe.name!r}. Give both the same one."
            )
        if "continued" in policies:
            _check_shape(first, recipe)
    joined = [policy for policy in policies if policy in ("continued", "merged")]
    for recipe in recipes if sweeping and joined else ():
        if searched := [field for field in recipe.search if field in GIVEN_BY_START]:
            raise BadRecipe(
                f"Adapters that are continued or merged have one shape, but {recipe.name!r} searches {', '.join(searched)}. Take "
                f"that out of search, or leave {' and '.join(joined)} out of --policies."
            )
    if weights and ("merged" not in policies or len(weights) != len(recipes)):
        raise BadRecipe(
            f"--weights has one weight a recipe, for the policy 'merged', but got {len(weights)} for {len(recipes)} recipes "
            f"under {', '.join(policies)}. Give one each, or leave it out."
        )
    if "merged" in policies:
        for recipe in recipes:
            if recipe.adapter.kind != "lora":
                raise BadRecipe(
                    f"Only LoRAs have a sum, but adapter.kind is {recipe.adapter.kind!r} in {recipe.name!r}. Fit a LoRA, or "
                    "leave merged out of --policies."
                )


def _check_shape(first: Recipe, other: Recipe) -> None:
    continuing(other, Path("start"))
    for part in ("kind", *(("lora",) if "lora" in first.adapter.kind else ()), *_THOUGHTS.get(first.adapter.kind, ())):
        ours, theirs = (_shape(recipe, part) for recipe in (first, other))
        if ours != theirs:
            raise BadRecipe(
                f"A continued adapter keeps its shape, but adapter.{part} is {ours!r} in {first.name!r} and {theirs!r} in "
                f"{other.name!r}. Give both the same one, or leave continued out of --policies."
            )


def _shape(recipe: Recipe, part: str) -> object:
    value = getattr(recipe.adapter, part)
    return value if part == "kind" else {field: getattr(value, field) for field in _SHAPES[part]}
