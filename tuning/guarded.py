"""The recipe of what no sweep made: its domain, guarded by every other family, and the usual gate."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from evaluation.tasks import task_named
from tuning.errors import BadRecipe
from tuning.faults import in_one_sentence
from tuning.recipe import Recipe, is_file


def guarded(name: str, backbone_name: str, domain: str, **more: object) -> Recipe:
    """`more` are further fields of a recipe. BadRecipe in one sentence where they are none.

    A task's file is named by its whole path: what is made is gated from any folder.
    """
    if is_file(domain):
        domain = str(Path(domain).resolve())
    own = task_named(domain).name
    protected = [family for family in Recipe.model_fields["protected"].default if family not in (own, domain)]
    values = {"name": name, "backbone": backbone_name, "domain": domain, "protected": tuple(protected)}
    try:
        return Recipe.model_validate({**values, **more})
    except ValidationError as error:
        raise BadRecipe(in_one_sentence(error)) from error
