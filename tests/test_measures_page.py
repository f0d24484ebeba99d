"""docs/measures.md has a picture of every measure, drawn in grey from numbers that were read, and says what it cannot show."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from documents import DOCS, ROOT
from matplotlib.image import imread

from evaluation.measures import MEASURES

PAGE = (DOCS / "measures.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^### (.+?)\n(.*?)(?=^##)", PAGE, re.M | re.S)
NUMBERS = json.loads((ROOT / "benchmarks" / "measure_pictures.json").read_text())


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_its_picture_and_its_limits(name: str) -> None:
    (text,) = [text for title, text in SECTIONS if f"`{name}`" in title]
    assert f"(images/{name}.png)" in text
    assert re.search(r"\b(cannot|not|nor|neither|no)\b", text.rpartition(".png)")[2], re.I)


@pytest.mark.parametrize("name", MEASURES)
def test_a_picture_is_small_and_grey(name: str) -> None:
    file = DOCS / "images" / f"{name}.png"
    assert file.stat().st_size < 40_000
    rgb = imread(file)[..., :3]
    assert np.ptp(rgb, axis=2).max() < 0.02


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_drawn_is_flagged_and_zeros_change_nothing(name: str) -> None:
    found = NUMBERS[name]
    assert found["change"][2] < 0 and found["zeros"] == [0.0, 0.0, 0.0]
