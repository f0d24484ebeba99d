"""Operators find every setting in the documents, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("deploy", "serving"))
TOLD = frozenset(re.findall(rf"`{PREFIX}([A-Z_]+)", PAGES))


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_documented(field: str) -> None:
    assert field.upper() in TOLD, f"add {PREFIX}{field.upper()} to docs/deploy.md"


def test_the_commands_that_make_a_container_name_the_service() -> None:
    (service,) = re.findall(r'^    name="(\w+)",$', (ROOT / "service" / "app.py").read_text(), re.MULTILINE)
    assert "    bentoml build " in PAGES and f"    bentoml containerize {service}:latest " in PAGES


def test_no_document_names_a_setting_that_is_not_there() -> None:
    assert {name.lower() for name in TOLD} <= Settings.model_fields.keys()
