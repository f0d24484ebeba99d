"""A gate's claim: gates that begin at once take shares of their own, and files are gated by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from gated_names import NAME

from registry.claim import alone, claimed
from registry.errors import GateIsRunning
from registry.evidence import Share, Spent
from registry.gate_settings import GateSettings
from registry.names import ReleaseName
from registry.tracking import Tracking
from registry.verdicts import record_start, taken_shares

SETTINGS = GateSettings(margin=0.15, max_rounds=1)


def at_once(tracking: Tracking, versions: list[int], settings: GateSettings = SETTINGS) -> list[Share]:
    """The shares that gates of these versions take when all begin in the same moment."""
    together = Barrier(len(versions))

    def begin(version: int) -> Share:
        together.wait()
        return claimed(tracking, ReleaseName(NAME, version), "same", settings).start.shares[-1]

    with ThreadPoolExecutor(len(versions)) as pool:
        return list(pool.map(begin, versions))


@pytest.mark.parametrize("candidates", [1, 3])
def test_gates_that_begin_at_once_spend_no_more_than_alpha(tracking: Tracking, candidates: int) -> None:
    settings = SETTINGS.model_copy(update={"num_candidates": candidates})
    shares = at_once(tracking, [1, 2, 3, 4], settings)
    spent = Spent(0, frozenset(shares))
    assert len(spent.shares) == 4 and not any(map(spent.is_overdrawn, shares))
    each = [settings.model_copy(update={"restarts": share.number}).candidate_alpha for share in shares]
    assert sum(each) <= SETTINGS.alpha
    assert spent.shares <= taken_shares(tracking, NAME)


def test_two_gates_of_one_version_that_begin_at_once_are_one_test_or_take_two_shares(tracking: Tracking) -> None:
    one, other = at_once(tracking, [1, 1])
    assert one == other or one.number != other.number
    assert {one, other} <= taken_shares(tracking, NAME)


def test_a_gate_that_was_cut_off_goes_on_with_the_share_that_it_took(tracking: Tracking) -> None:
    first, again = (claimed(tracking, ReleaseName(NAME, 1), "same", SETTINGS).start for _ in range(2))
    assert first == again and taken_shares(tracking, NAME) == frozenset(first.shares)


def test_of_two_that_took_one_share_before_the_later_one_moves_on(tracking: Tracking) -> None:
    first = claimed(tracking, ReleaseName(NAME, 1), "same", SETTINGS).start
    record_start(tracking, ReleaseName(NAME, 2), first.model_copy(update={"seed": first.seed + 1}))
    moved = claimed(tracking, ReleaseName(NAME, 2), "same", SETTINGS).start
    assert (first.restarts, moved.restarts) == (0, 1)


def test_files_are_gated_by_one_process_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "gate.lock", "small@1"):
        with (
            pytest.raises(GateIsRunning, match=r"process \d+ gates the files of small@2 now"),
            alone(tmp_path / "gate.lock", "small@2"),
        ):
            pass
        with alone(tmp_path / "other.lock", "small@2"):
            pass
    with alone(tmp_path / "gate.lock", "small@2"):
        pass


def test_a_holder_that_was_killed_blocks_nobody(tmp_path: Path) -> None:
    file = tmp_path / "gate.lock"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom registry.claim import alone\n"
        f"with alone(Path({str(file)!r}), 'small@1'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    assert killed.returncode == -9 and file.is_file()
    with alone(file, "small@1"):
        pass
