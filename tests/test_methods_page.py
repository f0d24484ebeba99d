"""docs/methods.md: every method has its section, and every example is a recipe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tuning.methods import METHODS
from tuning.recipe import Recipe

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.+?)```", PAGE, re.S)
RECIPES = [text for text in EXAMPLES if "graph" not in tomllib.loads(text)]  # the others are task files


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section(name: str) -> None:
    assert re.search(rf"^## `{re.escape(name)}`", PAGE, re.M)


@pytest.mark.parametrize("text", RECIPES)
def test_every_example_is_a_recipe(text: str) -> None:
    assert Recipe(**{"name": "x", "domain": "icd10"} | tomllib.loads(text)).name


def test_there_are_examples() -> None:
    assert len(RECIPES) > 3
