"""The chain of ledger entries: what one says, and which of them count.

Every entry carries a copy of the one that it was written on top of. One that was edited or deleted later is told from that copy,
which its digest proves: what happened stays what it was, and everybody reads the same head, from the first entry on or from the
last one that they know.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from registry.errors import StoreRefused
from registry.names import ledger_name
from registry.tracking import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Kind = Literal["promote", "rollback", "override"]
ENTRY_TAG, DIGEST_TAG = "graftline.ledger.entry", "graftline.ledger.entry_digest"
BEFORE_TAG = "graftline.ledger.before"  # the copy of the entry below
CANARY_TAG = "graftline.canary.entry"  # marks what is no entry of this chain: see registry.canary_chain
PROPOSAL_TAG = "graftline.proposal.entry"  # likewise: see registry.proposals
ATTEMPTS = 30
# Left out where they say nothing, as entries from before them have it.
_LATER_FIELDS = frozenset({"proposal", "proposed_by", "manifest"})


class LedgerEntry(BaseModel):
    """What one entry says. `parent` is the number of the entry it was written on top of, 0 for the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: int
    adapter_version: int
    kind: Kind
    actor: str
    reason: str
    gate_verdict: str  # pass, fail or inconclusive; "none" when no gate was run
    gate_digest: str | None  # SHA-256 of the report's canonical JSON
    created: str  # UTC, ISO 8601
    proposal: int | None = None  # the number of the proposal that this approves, and who made it; `actor` approved it
    proposed_by: str | None = None
    manifest: str | None = None  # SHA-256 of that of the files; None in entries from before it was kept

    @property
    def is_override(self) -> bool:
        return self.kind == "override"

    def said(self) -> dict[str, JsonValue]:
        return {key: value for key, value in self.model_dump().items() if value is not None or key not in _LATER_FIELDS}

    def stored(self) -> str:
        return json.dumps(self.said())

    def chained(self, previous_digest: str) -> str:
        """SHA-256 over the previous valid entry's digest and all that this one says."""
        payload = json.dumps(self.said(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{previous_digest}\n{payload}".encode()).hexdigest()


@dataclass(frozen=True)
class Recorded:
    """An entry as the registry holds it. `void` tells why it does not count; None when it does.

    `damage`: it counts by the copy in the entry numbered `told_by`, because its own place holds something else, or nothing.
    """

    number: int
    entry: LedgerEntry | None  # None when its tags cannot be read
    digest: str
    void: str | None = None
    damage: Literal["edited", "deleted"] | None = None
    told_by: int | None = None
    lost: bool = False  # void and whole: another promoter was first


@dataclass(frozen=True)
class Head:
    """The last valid entry; number 0 and version None before the first."""

    number: int = 0
    adapter_version: int | None = None
    digest: str = ""
    actor: str = ""
    kind: str = ""
    manifest: str | None = None

    def is_told_by(self, version: ModelVersion) -> bool:
        """Whether the registry still holds this entry as it was read."""
        recorded = read_entry(version)
        return recorded.entry is not None and as_head(recorded) == self


def add_version(tracking: Tracking, name: str, adapter_version: int, tags: Mapping[str, str]) -> int:
    """Writes a version of NAME.releases with these tags; its number. Whether it counts is for its chain to say."""
    from mlflow.exceptions import MlflowException

    ledger = ledger_name(name)
    with tracking.client() as client:
        for attempt in range(ATTEMPTS):
            try:
                made = client.create_model_version(ledger, source=f"models:/{name}/{adapter_version}", tags=dict(tags))
                return int(made.version)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    _make_ledger(client, ledger)
                    continue
                # The store gives a number away at most a few times before it gives up; rivals are seldom this many.
                if "creation error" not in str(error).lower() or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0.01, 0.1))
    raise StoreRefused(
        f"An entry of {ledger} was to be written, but the store did not take it in {ATTEMPTS} attempts. Try again."
    )


def _make_ledger(client: MlflowClient, ledger: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(ledger)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def copied(below: Recorded) -> str:
    """What an entry carries of the one below it."""
    assert below.entry is not None
    return json.dumps({"number": below.number, "entry": below.entry.said(), "digest": below.digest})


def fold(head: Head, versions: Iterable[ModelVersion]) -> list[Recorded]:
    """Judges entries in the order of their numbers, from the head they come after. Canaries and proposals are passed over."""
    held = {int(version.version): version for version in versions}
    copies = _copies(held.values())
    chained = {head.number: head.digest}  # every entry that counted, for rivals to show that they were whole
    records: list[Recorded] = []
    for number in sorted({*held, *(number for number in copies if number > head.number)}):
        version = held.get(number)
        if version is not None and is_apart(version):
            continue
        recorded = Recorded(number, None, "", "it was deleted") if version is None else _judged(head, read_entry(version))
        if recorded.void is not None and _is_whole(recorded, chained):
            recorded = replace(recorded, lost=True)
        elif recorded.void is not None:
            for copy in copies.get(number, ()):
                told = _judged(head, copy)
                if told.void is None:
                    recorded = replace(told, damage="deleted" if version is None else "edited")
                    break
        if version is None and recorded.void is not None:  # nobody proves that there was one
            continue
        records.append(recorded)
        if recorded.void is None:
            head = as_head(recorded)
            chained[head.number] = head.digest
    return records


def is_apart(version: ModelVersion) -> bool:
    """Whether it is no entry of this chain."""
    return CANARY_TAG in version.tags or PROPOSAL_TAG in version.tags


def read_entry(version: ModelVersion) -> Recorded:
    """As it stands there, not judged unless it cannot be read."""
    number, tags = int(version.version), version.tags
    try:
        return Recorded(number, LedgerEntry.model_validate_json(tags[ENTRY_TAG]), tags.get(DIGEST_TAG, ""))
    except (KeyError, ValueError):
        return Recorded(number, None, "", "it cannot be read as an entry")


def _judged(head: Head, recorded: Recorded) -> Recorded:
    entry = recorded.entry
    if entry is None:
        return recorded
    if entry.parent != head.number:
        return replace(recorded, void=f"its parent is entry {entry.parent}, but entry {head.number} was the head")
    if recorded.digest != entry.chained(head.digest):
        return replace(recorded, void="its digest does not continue the chain: it was edited")
    return recorded


def _is_whole(recorded: Recorded, chained: Mapping[int, str]) -> bool:
    """Whether it says what it said when it was written on top of an entry that counted: then it lost, whatever a copy says."""
    entry = recorded.entry
    return entry is not None and entry.parent in chained and recorded.digest == entry.chained(chained[entry.parent])


def _copies(versions: Iterable[ModelVersion]) -> dict[int, list[Recorded]]:
    """By number, what later entries say of the one below them; only of those whose own digest continues that of the copy."""
    found: dict[int, list[Recorded]] = {}
    for version in versions:
        if BEFORE_TAG not in version.tags or is_apart(version):
            continue
        above = read_entry(version)
        try:
            told = json.loads(version.tags[BEFORE_TAG])
            number, below, digest = int(told["number"]), LedgerEntry.model_validate(told["entry"]), str(told["digest"])
        except (ValueError, TypeError, KeyError):
            continue
        if above.entry is None or above.entry.parent != number or above.digest != above.entry.chained(digest):
            continue
        found.setdefault(number, []).append(Recorded(number, below, digest, told_by=above.number))
    return found


def as_head(recorded: Recorded) -> Head:
    assert recorded.entry is not None
    entry = recorded.entry
    return Head(recorded.number, entry.adapter_version, recorded.digest, entry.actor, entry.kind, entry.manifest)


def succession(valid: Iterable[Recorded]) -> list[int]:
    """The line of champions that leads to the current one: a promotion extends it, a rollback cuts it back."""
    line: list[int] = []
    for recorded in valid:
        assert recorded.entry is not None
        version = recorded.entry.adapter_version
        if recorded.entry.kind == "rollback" and version in line:
            while line[-1] != version:
                line.pop()
        elif not line or line[-1] != version:
            line.append(version)
    return line
