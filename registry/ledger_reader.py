"""Where a ledger stands, by a look that reads what is new: one query for the newest entry where nothing is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from registry.canary_chain import Canary, Later, Trail
from registry.errors import ChampionMoved, NoChampion
from registry.ledger_chain import Head, Recorded, read_entry
from registry.names import checked_name, ledger_name
from registry.tracking import Tracking
from registry.versions import newest_versions, versions_after

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Read:
    """What was read and proved: up to the version numbered `seen`, where both chains stand, and the entries that count.

    `doubtful`: entries above the head that do not count and lost to nobody. One may be written back.
    """

    seen: int = 0
    trail: Trail = Trail()
    valid: tuple[Recorded, ...] = ()
    doubtful: tuple[Recorded, ...] = ()


class LedgerReader:
    """Keeps what it has proved, and reads only what came later. Safe to use from threads: a look leaves a whole `Read`.

    It proves the ledger again from the first entry where its head is no longer there as it was read, where an edited entry above
    it was written back, or where somebody built on an older one: then the two of them have read different histories, and the
    whole of it decides.
    """

    def __init__(self, tracking: Tracking, name: str) -> None:
        self._tracking, self._name = tracking, checked_name(name)
        self._read = Read()

    @property
    def trail(self) -> Trail:
        return self._read.trail

    @property
    def head(self) -> Head:
        return self._read.trail.champion

    @property
    def canary(self) -> Canary | None:
        """What was under way at the last look."""
        return self.trail.under_way(self._name)

    def refresh(self) -> int:
        """The champion's version by the ledger, after a look; NoChampion before the first promotion."""
        version = self.look().trail.champion.adapter_version
        if version is None:
            raise no_champion(self._name)
        return version

    def look(self) -> Read:
        ledger, known = ledger_name(self._name), self._read
        with self._tracking.client() as client:
            newest = next(iter(newest_versions(client, ledger)), None)
            latest = int(newest.version) if newest is not None else 0
            holds = latest >= known.seen and _holds(client, ledger, known.trail.champion, newest)
            if not holds or any(_has_changed(client, ledger, one) for one in known.doubtful[:1]):
                known = Read()
            read = known
            if latest > known.seen:
                one = [newest] if newest is not None and latest == known.seen + 1 else None
                found = one or versions_after(client, ledger, known.seen)
                later = known.trail.after(found)
                if known.seen and _is_another_history(later):
                    known, found = Read(), versions_after(client, ledger, 0)
                    later = known.trail.after(found)
                read = _joined(known, later, max((int(version.version) for version in found), default=0))
        self._read = read
        return read


@lru_cache(maxsize=1024)
def reader_of(tracking: Tracking, name: str) -> LedgerReader:
    """The one of this process."""
    return LedgerReader(tracking, name)


def no_champion(name: str) -> NoChampion:
    return NoChampion(
        f"A bare name means its champion, but nothing of {name} has been promoted. Run `graftline promote {name}@VERSION`, "
        f"or name a version: {name}@1."
    )


def champion_moved(name: str, expected: Head, winner: Head) -> ChampionMoved:
    if winner.adapter_version is None:
        return ChampionMoved(
            f"A promotion builds on the champion that it saw, but entry {expected.number}, which made it, is gone. "
            f"`graftline doctor {name}` says more."
        )
    before = f"{name}@{expected.adapter_version}" if expected.adapter_version is not None else "no champion"
    return ChampionMoved(
        f"A promotion builds on the champion that it saw, but {before} (entry {expected.number}) is no longer it: "
        f"{winner.actor} made {name}@{winner.adapter_version} champion ({winner.kind}, entry {winner.number}). "
        f"Look at it with `graftline status`, then promote again."
    )


def _holds(client: MlflowClient, ledger: str, head: Head, newest: ModelVersion | None) -> bool:
    """Whether the head stands in the registry as it was read: the entry above which nothing proves it."""
    from mlflow.exceptions import MlflowException

    if head.number == 0:
        return True
    if newest is not None and int(newest.version) == head.number:
        return head.is_told_by(newest)
    try:
        return head.is_told_by(client.get_model_version(ledger, str(head.number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _has_changed(client: MlflowClient, ledger: str, read: Recorded) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        now = read_entry(client.get_model_version(ledger, str(read.number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    return (now.entry, now.digest) != (read.entry, read.digest)


def _is_another_history(later: Later) -> bool:
    """Whether an entry counts by a copy alone, or was built on one that is not the last here and lost to none of these."""
    if any(one.damage for one in later.entries):
        return True
    built_on = {one.entry.parent for one in later.entries if one.void is None and one.entry is not None}
    return any(one.void is not None and one.entry is not None and one.entry.parent not in built_on for one in later.entries)


def _joined(known: Read, later: Later, latest: int) -> Read:
    head = later.trail.champion.number
    valid = (*known.valid, *(one for one in later.entries if one.void is None))
    void = (one for one in (*known.doubtful, *later.entries) if one.void is not None and not one.lost and one.number > head)
    return Read(latest, later.trail, valid, tuple(void))
