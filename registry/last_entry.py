"""The copy of the last entry: no entry stands above that one to carry it, so the version that it made champion does.

Where the last entry is deleted, the one before it holds. The copy tells that there was another one: nobody's promotion is undone
without a word. An entry that was edited in its place can be written back from it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from registry.ledger_chain import Head, LedgerEntry, Recorded, as_head, copied
from registry.names import ReleaseName
from registry.tracking import Tracking
from registry.verdicts import set_version_tags
from registry.versions import versions_after

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MADE_BY_TAG = "graftline.ledger.made_champion_by"  # at the version


def keep_copy(tracking: Tracking, name: str, last: Recorded) -> None:
    """After the entry has been added."""
    assert last.entry is not None
    set_version_tags(tracking, ReleaseName(name, last.entry.adapter_version), {MADE_BY_TAG: copied(last)})


def missing_entries(tracking: Tracking, name: str, head: Head) -> tuple[Recorded, ...]:
    """Entries above the head that no longer count, oldest first, as copies tell them whose digests continue its chain."""
    with tracking.client() as client:
        told = [_told(version) for version in versions_after(client, name)]
    found: list[Recorded] = []
    for one in sorted((one for one in told if one is not None), key=lambda one: one.number):
        entry = one.entry
        if entry is not None and one.number > head.number == entry.parent and one.digest == entry.chained(head.digest):
            found.append(one)
            head = as_head(one)
    return tuple(found)


def missing_sentence(name: str, missing: Recorded, champion: int | None) -> str:
    """Of an entry that no longer counts. `champion` is who holds without it."""
    entry = missing.entry
    assert entry is not None
    made = f"{name}@{entry.adapter_version}"
    served = f"{name}@{champion} is champion" if champion is not None else "nothing is champion"
    return (
        f"Entry {missing.number} of {name} was deleted or edited, and no entry tells it: by the copy that {made} carries, "
        f"{entry.actor} made {made} champion ({entry.kind}, {entry.created}). Without it {served}."
    )


def _told(version: ModelVersion) -> Recorded | None:
    try:
        told = json.loads(version.tags[MADE_BY_TAG])
        return Recorded(int(told["number"]), LedgerEntry.model_validate(told["entry"]), str(told["digest"]))
    except (KeyError, TypeError, ValueError):
        return None
