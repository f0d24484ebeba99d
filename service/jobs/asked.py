"""What a fine-tuning job is asked for, and the recipe that this makes."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from registry.errors import RefusedName
from registry.names import checked_name, refuse_backbone_name
from service.errors import ApiError
from service.json_fields import JsonFields
from service.shortened import shortened

if TYPE_CHECKING:
    from tuning.recipe import Recipe

RECIPE = "recipe.json"
OF_A_JOB = ("adapter", "method", "search", "ranges", "start", "study", "evaluation")  # what a request may say of the recipe
_FIELDS = {"batch_size": "method.batch_size", "learning_rate_multiplier": "method.learning_rate", "n_epochs": "method.steps"}


class Hyperparameters(JsonFields):
    """`auto` leaves a value to the sweep."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Literal["auto"] | int = Field(default="auto")
    batch_size: Literal["auto"] | int = Field(default="auto")
    learning_rate_multiplier: Literal["auto"] | float = Field(default="auto")

    @field_validator("*")
    @classmethod
    def _positive(cls, value: str | float) -> str | float:
        if not isinstance(value, str) and not 0 < value < 1e6:
            raise ValueError(f"a hyperparameter is 'auto' or above 0, but got {value}")
        return value


class Supervised(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """The other types of OpenAI's are methods of a recipe here: `"recipe": {"method": {"name": "dpo"}}`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class JobRequest(JsonFields):
    """OpenAI's fields, and `recipe`, `columns` and `separator` for what they cannot say."""

    model: str
    training_file: str
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    validation_file: str | None = None
    integrations: list[object] | None = None
    recipe: dict[str, object] = {}
    columns: dict[str, str | tuple[str, ...]] | None = None
    separator: str = Field(default="|", min_length=1, max_length=8)

    @field_validator("suffix")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                checked_name(value)
            except RefusedName as error:
                raise ValueError(str(error)) from error
            if not re.fullmatch(r"[\w.-]+", value):
                raise ValueError(f"a suffix names the released model: letters, digits, '.', '_', '-', but got {value!r}")
        return value

    @property
    def chosen(self) -> Hyperparameters:
        return self.method.supervised.hyperparameters if self.method else self.hyperparameters or Hyperparameters()

    def refuse_unsupported(self) -> None:
        if self.validation_file is not None:
            message = "Rows are split here by what they say, so validation_file is not taken. Put all rows into training_file."
            raise ApiError(400, message, "unsupported_parameter", "validation_file")
        if self.integrations:
            message = "Every trial is a run of the server's MLflow; other integrations are not offered. Leave them out."
            raise ApiError(400, message, "unsupported_parameter", "integrations")

    def refuse_name_of(self, backbone: str) -> None:
        try:
            refuse_backbone_name(self.suffix or self.training_file, backbone)
        except RefusedName as error:
            raise ApiError(400, str(error), "name_taken", "suffix") from error


def recipe_of(asked: JobRequest, name: str, backbone: str, task: Path, rows: int, template: Path | None) -> Recipe:
    """The operator's recipe with what the request says of it; domain, backbone and gate are not the request's to say."""
    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence
    from tuning.recipe import Recipe

    if strange := sorted(asked.recipe.keys() - set(OF_A_JOB)):
        message = f"A job's recipe says {', '.join(OF_A_JOB)}, but got {shortened(strange[0])}. Leave it out."
        raise ApiError(400, message, "invalid_value", "recipe")
    refuse_paths(asked.recipe)
    tree = _merged({} if template is None else tomllib.loads(template.read_text(encoding="utf-8")), asked.recipe)
    tree |= {"name": name, "backbone": backbone, "domain": str(task)}
    try:
        recipe = Recipe(**tree)
        fixed = _hyperparameters(asked, recipe, rows)
        left = tuple(field for field in recipe.search if field not in fixed)
        ranges = {field: value for field, value in recipe.ranges.items() if field in left}
        return recipe.with_values({**fixed, "search": left, "ranges": ranges}) if fixed else recipe
    except ValidationError as error:
        raise ApiError(400, f"The recipe breaks a rule: {in_one_sentence(error)}", "invalid_value", "recipe") from error
    except BadRecipe as error:
        raise ApiError(400, f"The recipe breaks a rule: {error}", "invalid_value", "recipe") from error


def stored(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json", exclude_unset=True))


def task_name(name: str) -> str:
    """Of a model's data: no built-in task has such a name."""
    return "data-" + re.sub(r"[^a-z0-9._-]", "-", name.lower())


def _hyperparameters(asked: JobRequest, recipe: Recipe, rows: int) -> dict[str, object]:
    """What is said once and for all, by field of the recipe. A rate is told against the method's own."""
    given = {key: value for key, value in asked.chosen.model_dump().items() if value != "auto"}
    fixed: dict[str, object] = {}
    if "batch_size" in given:
        fixed["method.batch_size"] = given["batch_size"]
    if "learning_rate_multiplier" in given:
        fixed["method.learning_rate"] = recipe.method.learning_rate * given["learning_rate_multiplier"]
    if "n_epochs" in given:
        batch_size = int(given.get("batch_size", recipe.method.batch_size))
        fixed["method.steps"] = math.ceil(given["n_epochs"] * rows / batch_size)
    if asked.seed is not None:
        fixed |= {"study.seed": asked.seed, "method.seed": asked.seed}
    return fixed


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in over if isinstance(over[key], dict) and isinstance(base.get(key), dict)}
    return {**base, **over, **both}


def refuse_paths(value: object, param: str = "recipe", key: str = "") -> None:
    """No text of a request names a file of the server; earlier releases are named models:/NAME@champion."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            refuse_paths(one, param, name)
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_paths(one, param, key)
    elif isinstance(value, str) and not value.startswith("models:/"):
        if key in ("warm_start", "orthogonal_to") or value.endswith(".toml") or "/" in value or "\\" in value:
            message = (
                f"A job's recipe names no files, but got {shortened(value)}. Upload data, and name releases as "
                "models:/NAME@champion."
            )
            raise ApiError(400, message, "invalid_value", param)
