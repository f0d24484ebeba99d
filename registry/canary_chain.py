"""What the ledger says of canaries: which release gets a share of its name's traffic, or mirrors it, and how that ended.

Entries stand among the promotions in NAME.releases, under tags of their own, with a chain of their own: a reader that knows
only promotions passes them over, and no promotion builds on one. An entry names the champion that it stands beside, so a
canary ends where the champion moves, whoever moved it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from registry.errors import CanaryRefused
from registry.ledger_chain import CANARY_TAG, Head, Recorded, as_head, fold
from registry.names import ReleaseName

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CanaryKind = Literal["start", "share", "finish", "stop", "rollback"]
DIGEST_TAG = "graftline.canary.entry_digest"
# With less beside it, the champion shows too little to be compared with.
MAX_SHARE = 0.95


class Bounds(BaseModel):
    """How much worse than the champion a canary may be over the same period, and how sure a rollback is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_error_rate_rise: float = Field(default=0.02, ge=0, lt=1)
    """Canary's minus champion's share of requests that the server failed."""
    max_latency_ratio: float = Field(default=1.25, ge=1, le=100)
    """Canary's over champion's, of the time to the first token and of the time per token after it."""
    min_requests: int = Field(default=20, ge=1, le=100_000)
    """The canary's requests before anything is concluded."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Of ever rolling back a canary within its bounds, over all looks of one serving process."""


class CanaryEntry(BaseModel):
    """One entry: what is under way from here on, or (`finish`, `stop`, `rollback`) what no longer is.

    `parent` is the number of the canary entry before it, 0 for the first; `champion_entry` that of the promotion that made the
    champion beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    parent: int
    champion_entry: int
    adapter_version: int
    kind: CanaryKind
    share: float = Field(gt=0, le=1)
    shadow: bool
    bounds: Bounds
    actor: str
    reason: str
    gate_verdict: str  # as in a promotion's entry
    gate_digest: str | None
    overridden: bool
    created: str  # UTC, ISO 8601
    manifest: str | None = None  # SHA-256 of that of the files at the start; None in entries from before it was kept

    @property
    def is_under_way(self) -> bool:
        return self.kind in ("start", "share")

    def said(self) -> dict[str, JsonValue]:
        return {key: value for key, value in self.model_dump().items() if value is not None or key != "manifest"}

    def stored(self) -> str:
        return json.dumps(self.said(), separators=(",", ":"))

    def chained(self, previous_digest: str) -> str:
        """SHA-256 over the previous valid entry's digest and all that this one says."""
        payload = json.dumps(self.said(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{previous_digest}\n{payload}".encode()).hexdigest()


@dataclass(frozen=True)
class CanaryHead:
    """The last valid entry about canaries; number 0 before the first. `started` is the number of its start."""

    number: int = 0
    digest: str = ""
    started: int = 0
    entry: CanaryEntry | None = None


@dataclass(frozen=True)
class Canary:
    """What is under way. `id` names this one start for ever; `share` may change while it runs."""

    release: ReleaseName
    champion: ReleaseName
    id: int
    share: float
    shadow: bool
    bounds: Bounds
    overridden: bool
    since: str  # of its last entry: UTC, ISO 8601
    manifest: str | None = None  # as in its entries

    @property
    def word(self) -> str:
        return "shadow" if self.shadow else "canary"

    def exchanged(self, found: str | None) -> str | None:
        """In a sentence: that its version is gone, or has other files than at its start. `found` is what `manifest` is now."""
        if self.manifest is None or found == self.manifest:
            return None
        now, what = ("none", "deleted") if found is None else (found[:12], "exchanged")
        return (
            f"A {self.word} keeps the files that it was started with, but {self.release} was started with the manifest "
            f"{self.manifest[:12]} and has {now} now: it was {what}. End it (`graftline canary stop {self.release.name} --reason "
            "...`), and publish what is meant as a version of its own."
        )


@dataclass(frozen=True)
class CanaryRecord:
    """An entry as the registry holds it. `void` tells why it does not count; None when it does."""

    number: int
    entry: CanaryEntry | None
    void: str | None = None


@dataclass(frozen=True)
class Trail:
    """Both chains of one name, read so far."""

    champion: Head = Head()
    canary: CanaryHead = CanaryHead()

    def under_way(self, name: str) -> Canary | None:
        """None before the first start, after an end, and once the champion that it was compared with has moved."""
        entry, champion = self.canary.entry, self.champion.adapter_version
        if entry is None or champion is None or not entry.is_under_way or entry.champion_entry != self.champion.number:
            return None
        return Canary(
            ReleaseName(name, entry.adapter_version),
            ReleaseName(name, champion),
            self.canary.started,
            entry.share,
            entry.shadow,
            entry.bounds,
            entry.overridden,
            entry.created,
            entry.manifest,
        )

    def after(self, versions: Iterable[ModelVersion]) -> Later:
        """With later entries of either chain, in the order of their numbers."""
        held = {int(version.version): version for version in versions}
        entries = fold(self.champion, held.values())
        champions = {entry.number: as_head(entry) for entry in entries if entry.void is None}
        champion, canary = self.champion, self.canary
        records: list[CanaryRecord] = []
        for number in sorted(held.keys() | champions.keys()):
            if number in champions:
                champion = champions[number]
            elif CANARY_TAG in held[number].tags:
                record = _judged(champion, canary, held[number])
                records.append(record)
                if record.entry is not None and record.void is None:
                    started = number if record.entry.kind == "start" else canary.started
                    canary = CanaryHead(number, held[number].tags[DIGEST_TAG], started, record.entry)
        return Later(Trail(champion, canary), tuple(entries), tuple(records))


class Later(NamedTuple):
    """What a look at later versions gives: where both chains stand, and every entry of each, judged."""

    trail: Trail
    entries: tuple[Recorded, ...]
    canaries: tuple[CanaryRecord, ...]


def check_share(share: float, shadow: bool) -> None:
    """CanaryRefused for what is no share, or leaves too little to compare it with."""
    if shadow and not 0 < share <= 1:
        raise CanaryRefused(f"A shadow's share of the requests is above 0 and at most 1, but got {share:g}. Correct it.")
    if not shadow and not 0 < share <= MAX_SHARE:
        raise CanaryRefused(
            f"A canary's share is above 0 and at most {MAX_SHARE:g}, so that there is a champion to compare it with, but got "
            f"{share:g}. Correct it, or make it champion: `graftline canary finish NAME`."
        )


def checked_bounds(given: Bounds, **changes: float | None) -> Bounds:
    """With the values that are not None, or CanaryRefused in a sentence."""
    asked = {field: value for field, value in changes.items() if value is not None}
    try:
        return Bounds.model_validate({**given.model_dump(), **asked})
    except ValidationError as error:
        first = error.errors()[0]
        field, rule = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
        raise CanaryRefused(f"A canary's {field} does not fit: it must be {rule}, but got {first['input']!r}.") from error


def _judged(champion: Head, canary: CanaryHead, version: ModelVersion) -> CanaryRecord:
    number, tags = int(version.version), version.tags
    try:
        entry = CanaryEntry.model_validate_json(tags[CANARY_TAG])
    except ValueError:
        return CanaryRecord(number, None, "it cannot be read as an entry about a canary")
    if entry.parent != canary.number:
        return CanaryRecord(number, entry, f"its parent is entry {entry.parent}, but entry {canary.number} was the last")
    if entry.champion_entry != champion.number:
        return CanaryRecord(
            number, entry, f"it stands beside entry {entry.champion_entry}, but entry {champion.number} was champion"
        )
    if tags.get(DIGEST_TAG) != entry.chained(canary.digest):
        return CanaryRecord(number, entry, "its digest does not continue the chain: it was edited")
    return CanaryRecord(number, entry)
