"""The benchmark of serving goes on where it was, compares within a round, and runs its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.serving import Taken, measured, ratio


def test_rounds_that_are_in_the_file_are_not_run_again(tmp_path: Path) -> None:
    ran: list[int] = []
    file = tmp_path / "rows.jsonl"
    for count in (2, 3):
        found = measured(file, ["cell", 1], lambda: {"arm": ran.append}, count)
        assert len(found) == count
    assert ran == [-1, 0, 1, -1, 2]
    assert measured(file, ["cell", 1], lambda: pytest.fail("nothing is left to run"), 3) == found
    assert all(json.loads(line)["cell"] == ["cell", 1] for line in file.read_text().splitlines())


def test_a_ratio_is_of_speeds_within_rounds() -> None:
    # The machine gets three times slower in the second round, which changes no ratio.
    rounds = [{"fast": Taken(slow, 1 * slow), "slow": Taken(slow, 2 * slow)} for slow in (1.0, 3.0)]
    assert ratio(rounds, "fast", "slow") == "2.00 [2.00, 2.00]"
    assert ratio(rounds, "slow", "fast") == "0.50 [0.50, 0.50]"
    assert ratio(rounds, "slow", "fast", by="wall") == "1.00 [1.00, 1.00]"


@pytest.mark.parametrize("part", ["mix", "loaded", "context"])
def test_every_part_runs(
    part: str, backbone_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "serving",
        part,
        "--smoke",
        "--threads",
        "1",
        "--backbone",
        str(backbone_directory),
        "--rows",
        str(tmp_path / "rows"),
    ]
    monkeypatch.setattr(sys, "argv", given)
    before = serving.RESULTS.read_text()
    serving.main()
    assert "| --- |" in capsys.readouterr().out
    assert serving.RESULTS.read_text() == before
