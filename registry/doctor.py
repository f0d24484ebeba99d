"""The doctor: what is wrong with a name's releases, what can be put right, and how to go on where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from registry.canary_chain import Trail
from registry.errors import PolicyRefused, RegistryError, UnknownRelease
from registry.ledger import Ledger
from registry.ledger_chain import DIGEST_TAG, ENTRY_TAG, Head, Recorded, as_head, fold
from registry.names import ReleaseName, checked_name, current_actor, ledger_name, unknown_release
from registry.policy import policies
from registry.proposals import REPORT_TAG, signed_report
from registry.release import load_release
from registry.tracking import Tracking
from registry.verdicts import version_tags
from registry.versions import versions_after

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ACCEPTED_TAG = "graftline.doctor.accepted"  # at the registered model: what somebody has looked into, by the ids of findings


@dataclass(frozen=True)
class Finding:
    """`id` names the fault for ever; `sentence` says what is wrong and how to go on."""

    id: str
    sentence: str
    repairable: bool = False
    state: str = "open"  # open, repaired, or accepted: somebody has looked into it, and it cannot be undone

    @property
    def is_open(self) -> bool:
        return self.state == "open"


@dataclass(frozen=True)
class _Examined:
    """A name's ledger, read whole."""

    tracking: Tracking
    name: str
    versions: tuple[ModelVersion, ...]
    records: tuple[Recorded, ...]

    @classmethod
    def of(cls, tracking: Tracking, name: str) -> _Examined:
        with tracking.client() as client:
            versions = versions_after(client, ledger_name(name), 0)
        return cls(tracking, name, tuple(versions), tuple(fold(Head(), versions)))

    @property
    def valid(self) -> list[Recorded]:
        return [recorded for recorded in self.records if recorded.void is None]

    @property
    def head(self) -> Head:
        return as_head(self.valid[-1]) if self.valid else Head()


def examine(tracking: Tracking, name: str, *, repair: bool = False, accept: str | None = None) -> tuple[Finding, ...]:
    """Every fault of a name. `repair` puts right what can be; `accept`, a reason, keeps what cannot on record as looked into."""
    _refuse_unknown(tracking, name)
    examined = _Examined.of(tracking, name)
    entries = list(_of_entries(examined))
    if repair:
        entries = [_restored(examined, finding) if finding.repairable else finding for finding in entries]
    found = [*entries, *_of_canaries(examined), *_of_policy(tracking, name), *_of_champion(examined, repair)]
    accepted = _accepted(tracking, name)
    if accept is not None:
        new = [one for one in found if one.is_open and not one.repairable and one.id not in accepted]
        accepted |= _accept(tracking, name, new, accept)
    return tuple(replace(one, state="accepted") if one.is_open and one.id in accepted else one for one in found)


def _of_entries(examined: _Examined) -> Iterator[Finding]:
    name, head = examined.name, examined.head
    champion = f"{name}@{head.adapter_version} is champion" if head.adapter_version is not None else "nothing is champion"
    for recorded in examined.records:
        number = recorded.number
        if recorded.damage == "edited":
            yield Finding(
                f"entry-edited:{number}",
                f"Entry {number} of {name} was edited. What it said is proved by the copy in entry {recorded.told_by}, and "
                f"counts. `graftline doctor {name} --repair` writes it back.",
                repairable=True,
            )
        elif recorded.damage == "deleted":
            yield Finding(
                f"entry-deleted:{number}",
                f"Entry {number} of {name} was deleted. What it said is proved by the copy in entry {recorded.told_by}, "
                f"and counts. Find out who deleted it; `graftline doctor {name} --accept REASON` then keeps this on record.",
            )
        elif recorded.void is not None and not recorded.lost:
            yield Finding(
                f"entry-void:{number}:{recorded.digest[:12]}",
                f"Entry {number} of {name} does not count: {recorded.void}. No copy tells what was there, so that {champion}, by "
                f"entry {head.number}. Go on from there: promote or roll back as ever, or restore the entry from a backup of the "
                f"store. `graftline doctor {name} --accept REASON` keeps this on record.",
            )
    told = {recorded.number for recorded in examined.records}
    there = {int(version.version) for version in examined.versions}
    for number in sorted(set(range(1, max(there, default=0))) - there - told):
        yield Finding(
            f"entry-gone:{number}",
            f"Entry {number} of {name} was deleted, and none that counts tells what it said. What came after it counts as if it "
            f"had never been there. `graftline doctor {name} --accept REASON` keeps this on record.",
        )
    tags = {int(version.version): version.tags for version in examined.versions}
    for recorded in examined.valid:
        assert recorded.entry is not None
        digest = None if recorded.entry.kind == "rollback" else recorded.entry.gate_digest  # it names that of an earlier entry
        held = tags.get(recorded.number)
        if digest is not None and held is not None and signed_report(held.get(REPORT_TAG), digest) is None:
            yield Finding(
                f"report-edited:{recorded.number}",
                f"The gate report in entry {recorded.number} of {name} is not the one that was signed. The entry still counts. "
                f"`graftline doctor {name} --accept REASON` keeps this on record.",
            )


def _of_canaries(examined: _Examined) -> Iterator[Finding]:
    for record in Trail().after(examined.versions).canaries:
        if record.void is not None and (record.entry is None or "edited" in record.void):
            yield Finding(
                f"canary-void:{record.number}",
                f"Entry {record.number} of {examined.name}, about a canary, does not count: {record.void}. Start the canary "
                f"again, if it should be under way. `graftline doctor {examined.name} --accept REASON` keeps this on record.",
            )


def _of_policy(tracking: Tracking, name: str) -> Iterator[Finding]:
    try:
        policies(tracking, name)
    except PolicyRefused as error:
        yield Finding("policy-unreadable", str(error))


def _of_champion(examined: _Examined, repair: bool) -> Iterator[Finding]:
    """Its version, its files and its alias."""
    tracking, name, version = examined.tracking, examined.name, examined.head.adapter_version
    ledger = Ledger(tracking, name)
    if version is not None:
        try:
            version_tags(tracking, ReleaseName(name, version))
        except UnknownRelease:
            there = ", ".join(map(str, ledger.earlier_champions())) or "none"
            yield Finding(
                f"champion-deleted:{version}:{examined.head.number}",
                f"{name}@{version} is champion by the ledger, but the version was deleted: a server that has it loaded goes on "
                f"with it, and one that starts has no {name}. Earlier champions that are still there: {there}. Run `graftline "
                f"rollback {name} --reason ...`, or publish and promote another version.",
            )
            return
        try:
            load_release(tracking, name, version)
        except RegistryError as error:
            yield Finding(f"champion-damaged:{version}", f"The champion of {name} cannot be loaded. {error}")
    drift = ledger.drift()
    if drift is not None:
        finding = Finding(f"alias:{drift.champion}:{drift.alias}", drift.repair, repairable=True)
        if repair:
            ledger.point_alias()
            finding = replace(finding, state="repaired")
        yield finding


def _restored(examined: _Examined, finding: Finding) -> Finding:
    number = int(finding.id.partition(":")[2])
    told = next(recorded for recorded in examined.records if recorded.number == number)
    assert told.entry is not None
    with examined.tracking.client() as client:
        ledger = ledger_name(examined.name)
        client.set_model_version_tag(ledger, str(number), ENTRY_TAG, told.entry.stored())
        client.set_model_version_tag(ledger, str(number), DIGEST_TAG, told.digest)
    return replace(finding, state="repaired")


def _refuse_unknown(tracking: Tracking, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        try:
            client.get_registered_model(checked_name(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise unknown_release(tracking, name) from error


def _accepted(tracking: Tracking, name: str) -> frozenset[str]:
    with tracking.client() as client:
        stored = client.get_registered_model(name).tags.get(ACCEPTED_TAG, "[]")
    return frozenset(str(one["id"]) for one in json.loads(stored))


def _accept(tracking: Tracking, name: str, found: Sequence[Finding], reason: str) -> frozenset[str]:
    now, actor = datetime.now(UTC).isoformat(timespec="seconds"), current_actor()
    told = [{"id": one.id, "actor": actor, "reason": reason, "created": now} for one in found]
    with tracking.client() as client:
        stored = json.loads(client.get_registered_model(name).tags.get(ACCEPTED_TAG, "[]"))
        client.set_registered_model_tag(name, ACCEPTED_TAG, json.dumps([*stored, *told]))
    return frozenset(one.id for one in found)
