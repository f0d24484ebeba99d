"""Comparison: what was compared once is read again, and a damaged file is as good as none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning.comparison import Comparison, Gain


def test_what_was_saved_is_kept(tmp_path: Path) -> None:
    found = Comparison(8, Gain(0.3, 0.4, 0.1, 0.0, 0.2), Gain(0.3, 0.5, 0.2, 0.1, 0.3), 2.0, None, None)
    found.save(tmp_path / "comparison.json")
    assert Comparison.kept(tmp_path / "comparison.json") == found


@pytest.mark.parametrize("text", [None, "", '{"items": 8, "fir', "[]", "null", '{"items": 8}'])
def test_a_file_that_is_missing_or_damaged_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    assert Comparison.kept(tmp_path / "comparison.json") is None
