"""A contract over all methods: examples in the document load, controls are named, and some kind of adapter is trained."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tuning.methods import METHODS
from tuning.recipe import KINDS, Recipe

DOCUMENT = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
SECTIONS = {name: text for name, text in re.findall(r"^## `?(\w+)`?\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S) if name in METHODS}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_names_its_control_and_its_examples_load(name: str) -> None:
    assert re.search(r"Controls?:", SECTIONS[name])
    for block in re.findall(r"```toml\n(.*?)```", SECTIONS[name], re.S):
        assert Recipe(**{"name": "x", "domain": "icd10", **tomllib.loads(block)}).method.name in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_some_kind_of_a_recipe(name: str) -> None:
    assert any(METHODS[name].trains(kind) for kind in KINDS)
