"""A gate's claim: files are gated by one process at a time, and a share of a name's alpha is taken by one gate.

Shares are taken as the ledger takes entries, with no lock and no service but MLflow: every gate writes its claim first and looks
at all claims then, so of two that took the same part at least one sees the other, and moves on to the next share.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import GateIsRunning
from registry.evidence import Evidence, Spent, begun
from registry.gate_settings import GateSettings
from registry.ledger import Ledger
from registry.names import ReleaseName
from registry.tracking import Tracking
from registry.verdicts import record_start, recorded_evidence, taken_shares, withdraw_start

_ATTEMPTS = 30


def claimed(tracking: Tracking, release: ReleaseName, conditions: str, settings: GateSettings) -> Evidence:
    """What a gate of the release goes on from, or its fresh start, with a share of alpha that no other gate has taken."""
    earlier, promotions = recorded_evidence(tracking, release), Ledger(tracking, release.name).promotions()
    others = taken_shares(tracking, release.name)
    for attempt in range(_ATTEMPTS):
        before = begun(earlier, conditions, settings, spent=Spent(promotions, others))
        record_start(tracking, release, before.start)
        mine, taken = before.start.shares[-1], taken_shares(tracking, release.name)
        if not Spent(promotions, taken).is_overdrawn(mine):
            return before
        # Both may have seen each other: whoever waits less takes the next share, and the other finds this one free again.
        time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
        withdraw_start(tracking, release, before.start)
        others = taken_shares(tracking, release.name) - {mine}
    raise GateIsRunning(f"A gate needs a share of alpha of its own, but too many gates of {release.name} begin. Try again.")


@contextmanager
def alone(file: Path, subject: str) -> Iterator[None]:
    """Holds the lock file; GateIsRunning where another process does."""
    with held(file) as holder:
        if holder:
            raise GateIsRunning(
                f"A release is gated by one process at a time, but {holder} gates the files of {subject} now. Wait for it: what "
                "it draws is kept."
            )
        yield


@contextmanager
def held(file: Path) -> Iterator[str]:
    """Holds the lock file and gives "", or holds nothing and names who does. The lock goes with its process, however it ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            yield f"process {lock.read().strip() or 'of another user'}"
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield ""
