"""Pictures of pages: few colours, and none too large for the documents."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.console_pictures import MAX_BYTES, save


def png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def test_a_picture_is_kept_with_few_colours(tmp_path: Path) -> None:
    save(png(Image.linear_gradient("L").convert("RGB")), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as kept:
        assert kept.size == (256, 256) and len(kept.getcolors()) <= 128


def test_what_is_too_large_is_refused_and_the_earlier_picture_stays(tmp_path: Path) -> None:
    save(png(Image.new("RGB", (8, 8))), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match=f"fewer than {MAX_BYTES} bytes"):
        save(png(Image.frombytes("RGB", (600, 600), random.Random(0).randbytes(600 * 600 * 3))), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
