"""The chain of ledger entries: what one says, and which of them count."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from registry.names import ledger_name
from registry.tracking import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Kind = Literal["promote", "rollback", "override"]
ENTRY_TAG, DIGEST_TAG = "graftline.ledger.entry", "graftline.ledger.entry_digest"
CANARY_TAG = "graftline.canary.entry"  # marks what is no entry of this chain: see registry.canary_chain
ATTEMPTS = 30


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

    @property
    def is_override(self) -> bool:
        return self.kind == "override"

    def chained(self, previous_digest: str) -> str:
        """SHA-256 over the previous valid entry's digest and all that this one says."""
        payload = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{previous_digest}\n{payload}".encode()).hexdigest()


@dataclass(frozen=True)
class Recorded:
    """An entry as the registry holds it. `void` tells why it does not count; None when it does."""

    number: int
    entry: LedgerEntry | None  # None when its tags cannot be read
    digest: str
    void: str | None = None


@dataclass(frozen=True)
class Head:
    """The last valid entry; number 0 and version None before the first."""

    number: int = 0
    adapter_version: int | None = None
    digest: str = ""
    actor: str = ""
    kind: str = ""


def versions_after(client: MlflowClient, ledger: str, after: int) -> list[ModelVersion]:
    """The entries with a number above `after`, by number."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(
            f"name='{ledger}'", max_results=200, order_by=["version_number DESC"], page_token=token
        )
        found.extend(version for version in page if int(version.version) > after)
        token = page.token or None
        if token is None or any(int(version.version) <= after for version in page):
            return sorted(found, key=lambda version: int(version.version))


def add_version(tracking: Tracking, name: str, adapter_version: int, tags: Mapping[str, str]) -> int:
    """Writes a version of NAME.releases with these tags; its number. Whether it counts is for its chain to say."""
    from mlflow.exceptions import MlflowException

    ledger = ledger_name(name)
    with tracking.client() as client:
        try:
            client.create_registered_model(ledger)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for attempt in range(ATTEMPTS):
            try:
                made = client.create_model_version(ledger, source=f"models:/{name}/{adapter_version}", tags=dict(tags))
                return int(made.version)
            except MlflowException as error:
                # The store gives a number away at most a few times before it gives up; rivals are seldom this many.
                if "creation error" not in str(error).lower() or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0.01, 0.1))
    raise AssertionError("unreachable: the last attempt returns or raises")


def fold(head: Head, versions: Iterable[ModelVersion]) -> list[Recorded]:
    """Judges entries in the order of their numbers, from the head they come after. What tells of canaries is passed over."""
    records: list[Recorded] = []
    for version in versions:
        if CANARY_TAG in version.tags:
            continue
        recorded = _judged(head, version)
        records.append(recorded)
        if recorded.void is None:
            head = as_head(recorded)
    return records


def _judged(head: Head, version: ModelVersion) -> Recorded:
    number, tags = int(version.version), version.tags
    try:
        entry = LedgerEntry.model_validate_json(tags[ENTRY_TAG])
    except (KeyError, ValueError):
        return Recorded(number, None, "", "it cannot be read as an entry")
    digest = tags.get(DIGEST_TAG, "")
    if entry.parent != head.number:
        return Recorded(number, entry, digest, f"its parent is entry {entry.parent}, but entry {head.number} was the head")
    if digest != entry.chained(head.digest):
        return Recorded(number, entry, digest, "its digest does not continue the chain: it was edited")
    return Recorded(number, entry, digest)


def as_head(recorded: Recorded) -> Head:
    assert recorded.entry is not None
    entry = recorded.entry
    return Head(recorded.number, entry.adapter_version, recorded.digest, entry.actor, entry.kind)


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
