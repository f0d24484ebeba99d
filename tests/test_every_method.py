"""A contract over all methods: documented with an example that loads, and fair about the adapter kinds that they train."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tuning.methods import METHODS
from tuning.recipe import KINDS, Recipe

DOCUMENT = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
SECTIONS = {name: text for name, text in re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section_with_its_control_and_an_example_that_loads(name: str) -> None:
    assert "Control:" in SECTIONS[name]
    examples = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", SECTIONS[name], re.S)]
    assert any(example["method"]["name"] == name for example in examples)
    for example in examples:
        assert Recipe(**{"name": "x", "domain": "icd10", **example}).method.name in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_some_kind_of_a_recipe(name: str) -> None:
    assert any(METHODS[name].trains(kind) for kind in KINDS)
