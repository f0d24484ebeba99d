"""A sweep from a recipe: one of the server's, or one that the request holds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from registry.errors import RefusedName
from registry.names import checked_name
from service.errors import ApiError
from service.jobs.asked import OF_A_JOB, refuse_paths
from service.json_fields import JsonFields
from service.shortened import shortened

if TYPE_CHECKING:
    from tuning.recipe import Recipe

BUNDLED = Path(__file__).resolve().parent.parent.parent / "recipes"  # beside the packages, in a checkout and in a wheel
_OPERATORS = ("protected", "gate")
_SAID = ("name", "domain", "engine", *OF_A_JOB, *_OPERATORS)  # what a request's own recipe may say


class SweepRequest(JsonFields):
    """`recipe`: the id of one of the server's; `toml`: one of the caller's own."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | None = Field(default=None, min_length=1, max_length=200)
    toml: str | None = Field(default=None, min_length=1, max_length=65536)
    name: str | None = Field(default=None, min_length=1, max_length=64)
    """What the best trial is published as; left out: the recipe's name."""
    trials: int | None = Field(default=None, ge=1, le=100_000)
    seed: int | None = Field(default=None, ge=0, lt=2**31)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        try:
            return None if value is None else checked_name(value)
        except RefusedName as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _one_of_two(self) -> SweepRequest:
        if (self.recipe is None) == (self.toml is None):
            raise ValueError("a sweep begins with recipe, the id of one of the server's, or with toml: give one of them")
        return self


def recipes(folder: Path | None) -> Mapping[str, Path]:
    """The server's recipes by id, which is the file's name without its ending."""
    return {file.stem: file for file in sorted((folder or BUNDLED).expanduser().glob("*.toml"))}


def recipe_to_sweep(asked: SweepRequest, folder: Path | None, backbone: str, template: Path | None, is_admin: bool) -> Recipe:
    """The recipe on the server's backbone. ApiError where it breaks a rule, or says what is the operator's to say.

    `template` is what a request's own recipe is laid over (GRAFTLINE_JOB_RECIPE).
    """
    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence
    from tuning.recipe import Recipe

    changes: dict[str, object] = {"backbone": backbone}
    changes |= {} if asked.trials is None else {"study.trials": asked.trials}
    changes |= {} if asked.seed is None else {"study.seed": asked.seed, "method.seed": asked.seed}
    param = "recipe" if asked.toml is None else "toml"
    try:
        if asked.toml is None:
            recipe = _of_the_server(asked.recipe, folder)
        else:
            recipe = Recipe(**{"name": asked.name or "sweep", **_own(asked.toml, template, is_admin)})
        if "backbone" in recipe.model_fields_set and recipe.backbone != backbone:
            message = f"This server fits around its own backbone, but the recipe names {shortened(recipe.backbone)}."
            raise ApiError(400, f"{message} Sweep it with `graftline tune`.", "backbone_mismatch", param)
        return recipe.with_values(changes)
    except ValidationError as error:
        raise ApiError(400, f"The recipe breaks a rule: {in_one_sentence(error)}", "invalid_value", param) from error
    except BadRecipe as error:
        raise ApiError(400, f"The recipe breaks a rule: {error}", "invalid_value", param) from error


def _of_the_server(name: str | None, folder: Path | None) -> Recipe:
    from tuning.recipe import Recipe

    known = recipes(folder)
    if name is None or name not in known:
        listed = ", ".join(known) or "none"
        raise ApiError(404, f"There is no recipe {shortened(name)} here. There are: {listed}.", "recipe_not_found", "recipe")
    return Recipe.load(known[name])


def _own(toml: str, template: Path | None, is_admin: bool) -> dict[str, Any]:
    """What the request's recipe says, over the operator's."""
    try:
        said = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise ApiError(400, f"A recipe is TOML, but this is not: {error}.", "invalid_value", "toml") from error
    if strange := sorted(said.keys() - set(_SAID)):
        message = f"A recipe that is sent says {', '.join(_SAID)}, but got {shortened(strange[0])}. Leave it out."
        raise ApiError(400, message, "invalid_value", "toml")
    if not is_admin and (strange := [key for key in _OPERATORS if key in said]):
        message = f"What is protected and how it is gated is the operator's to say, but the recipe has {strange[0]!r}."
        raise ApiError(403, f"{message} Leave it out, or use a key with the scope 'admin'.", "missing_scope", "toml")
    refuse_paths(said, "toml")
    _refuse_unknown_tasks([said.get("domain"), *said.get("protected", ())])
    base = {} if template is None else tomllib.loads(template.read_text(encoding="utf-8"))
    return {**{key: value for key, value in base.items() if key in _OPERATORS}, **said}


def _refuse_unknown_tasks(names: Sequence[object]) -> None:
    """A bare name could be a file's where the server was started."""
    from evaluation.tasks import TASKS
    from evaluation.tasks.gym import PREFIX

    for name in names:
        if isinstance(name, str) and name not in TASKS and not name.startswith(PREFIX):
            known = f"Built in: {', '.join(TASKS)}; others as {PREFIX}NAME; rows of your own by a fine-tuning job."
            raise ApiError(
                400, f"A recipe that is sent names tasks, but {shortened(name)} is none. {known}", "invalid_value", "toml"
            )
