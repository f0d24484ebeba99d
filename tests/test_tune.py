"""`graftline tune` refuses what could never be released before it writes anything."""

from __future__ import annotations

import pytest

from adapters.backbone import REASONER
from evaluation.errors import UnknownTask
from registry.errors import RefusedName
from service.commands.tune import checked
from tuning.recipe import Recipe


def test_a_recipe_may_not_have_the_name_of_its_backbone() -> None:
    assert checked(Recipe(name="coding", domain="icd10")).name == "coding"
    with pytest.raises(RefusedName, match=f"name of its own backbone.*Try {REASONER}.tuned"):
        checked(Recipe(name=REASONER, domain="icd10"))


def test_a_protected_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownTask, match="'boxs' is neither"):
        checked(Recipe(name="coding", domain="icd10", protected=("boxs",)))
