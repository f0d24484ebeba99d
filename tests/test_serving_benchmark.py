"""The benchmark of serving goes on where it was, compares within a round, and runs its parts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from adapters.backbone import Backbone
from benchmarks import layer, serving
from benchmarks.apart import Apart, Arm, Make, Work
from benchmarks.results import commits
from benchmarks.serving import Taken, kept, measured, ratio


@contextmanager
def here(makes: Sequence[Make], backbone: str, threads: int) -> Iterator[dict[str, Arm]]:
    """`Apart.all_of` in this process, without a second for each to start."""

    def arm(work: Work) -> Arm:
        def run(number: int) -> tuple[float, float]:
            began = time.perf_counter()
            work(number)
            return time.perf_counter() - began, 1.0

        return run

    yield {name: arm(work) for make in makes for name, work in make(Backbone.load(backbone)).items()}


def test_rounds_that_are_in_the_file_are_not_run_again(tmp_path: Path) -> None:
    ran: list[int] = []
    file = tmp_path / "rows.jsonl"

    def arm(number: int) -> tuple[float, float]:
        ran.append(number)
        return 1.0, 1.0

    for count in (2, 3):
        found = measured(file, ["cell", 1], lambda: nullcontext({"arm": arm}), count)
        assert len(found) == count
    assert ran == [-1, 0, 1, -1, 2]
    assert measured(file, ["cell", 1], lambda: pytest.fail("nothing is left to run"), 3) == found
    assert all(json.loads(line)["cell"] == ["cell", 1] for line in file.read_text().splitlines())


def test_rows_tell_the_commit_that_was_measured_and_older_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "commit", lambda: "abc1234")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"cell": ["cell"], "arms": {"arm": [1.0, 1.0]}}) + "\n")
    found = measured(file, ["cell"], lambda: nullcontext({"arm": lambda number: (1.0, 1.0)}), 2)
    assert found == [{"arm": Taken(1.0, 1.0)}] * 2
    assert commits(kept(file, ["cell"])) == "unknown, abc1234"


def test_a_section_of_the_layers_tells_the_commit_of_every_round() -> None:
    text = layer.section([{"alone": 100.0, "behind": 50.0}, {"alone": 100.0, "behind": 50.0, "commit": "abc1234"}])
    ends = [line.split(" | ")[-2:] for line in text.splitlines() if "0.500" in line and line.startswith("|")]
    assert ends == [["0.500", "unknown |"], ["0.500", "abc1234 |"]]


def made_here(backbone: Backbone) -> dict[str, Work]:
    return {"sleep": lambda number: time.sleep(0.01 * number)}


def test_an_arm_runs_and_is_timed_in_a_process_of_its_own(backbone_directory: Path) -> None:
    with Apart.all_of([made_here], str(backbone_directory), 1) as arms:
        (wall, cpu), (short, _) = arms["sleep"](5), arms["sleep"](1)
        assert short < 0.05 <= wall and 0 <= cpu < 0.05


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
    monkeypatch.setattr(Apart, "all_of", here)
    before = serving.RESULTS.read_text()
    serving.main()
    assert "| --- |" in capsys.readouterr().out
    assert serving.RESULTS.read_text() == before
