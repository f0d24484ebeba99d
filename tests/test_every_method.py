"""A contract over all methods: examples in the document load, controls are named, and some kind of adapter is trained."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from adapters.spec import Choices
from tuning.errors import BadRecipe
from tuning.methods import METHODS
from tuning.recipe import KINDS, Recipe

DOCUMENT = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
SECTIONS = {name: text for name, text in re.findall(r"^## `?(\w+)`?\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S) if name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_section_names_its_control_and_its_examples_load(name: str) -> None:
    assert re.search(r"Controls?:", SECTIONS[name])
    for block in re.findall(r"```toml\n(.*?)```", SECTIONS[name], re.S):
        assert Recipe(**{"name": "x", "domain": "icd10", **tomllib.loads(block)}).method.name in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_some_kind_of_a_recipe(name: str) -> None:
    assert any(METHODS[name].trains(kind) for kind in (*KINDS, "steering"))


@pytest.mark.parametrize("name", METHODS)
def test_a_kind_that_a_method_cannot_train_is_refused_by_name(name: str) -> None:
    for kind in (*KINDS, "steering", "lora+steering"):
        if METHODS[name].trains(kind):
            METHODS[name].check_kind(kind)
        else:
            with pytest.raises(BadRecipe, match=rf"The method {name!r} trains .+, but adapter.kind is {re.escape(repr(kind))}"):
                METHODS[name].check_kind(kind)


@pytest.mark.parametrize("name", METHODS)
def test_every_default_lies_within_what_is_searched(name: str) -> None:
    marks, spec = METHODS[name].spec_type.search_space(), METHODS[name].spec_type(name=name)
    assert {"learning_rate", "steps", "batch_size", "weight_decay"} <= marks.keys()
    for field, mark in marks.items():
        value = getattr(spec, field)
        assert value in mark.options if isinstance(mark, Choices) else mark.low <= value <= mark.high, field


@pytest.mark.parametrize("name", METHODS)
def test_what_spares_tokens_before_the_first_step_is_a_field_of_the_method(name: str) -> None:
    spec = METHODS[name].spec_type
    assert set(spec.written_first) <= spec.model_fields.keys()
