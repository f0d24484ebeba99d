"""The doctor: what is wrong with a name's releases, what can be put right, and how to go on where it cannot."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from registry.added_tags import add, added
from registry.canary import CanaryLedger
from registry.canary_chain import Trail
from registry.errors import NoRoom, PolicyRefused, RegistryError, RegistryUnreachable, UnknownRelease
from registry.last_entry import missing_entries, missing_sentence
from registry.ledger import Ledger
from registry.ledger_chain import (
    BEFORE_TAG,
    DIGEST_TAG,
    ENTRY_TAG,
    PROPOSAL_TAG,
    Head,
    Recorded,
    as_head,
    copied,
    fold,
)
from registry.names import ReleaseName, checked_name, current_actor, ledger_name, unknown_release
from registry.policy import policies
from registry.proposals import REPORT_TAG, is_whole, signed_report
from registry.release import has_copy, load_release, write_back
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
    missing: tuple[Recorded, ...]  # after the last that counts

    @classmethod
    def of(cls, tracking: Tracking, name: str) -> _Examined:
        with tracking.client() as client:
            versions = versions_after(client, ledger_name(name), 0)
        records = tuple(fold(Head(), versions))
        valid = [recorded for recorded in records if recorded.void is None]
        missing = missing_entries(tracking, name, as_head(valid[-1]) if valid else Head())
        return cls(tracking, name, tuple(versions), records, missing)

    @property
    def gone(self) -> list[Recorded]:
        """Of those that are missing, the ones that are not there."""
        there = {recorded.number for recorded in self.records}
        return [one for one in self.missing if one.number not in there]

    @property
    def edited(self) -> Recorded | None:
        """The one that is missing because it was edited in its place, directly above the head: it can be written back."""
        first = next(iter(self.missing), None)
        return first if first is not None and first not in self.gone else None

    @property
    def valid(self) -> list[Recorded]:
        return [recorded for recorded in self.records if recorded.void is None]

    @property
    def head(self) -> Head:
        return as_head(self.valid[-1]) if self.valid else Head()


def examine(tracking: Tracking, name: str, *, repair: bool = False, accept: str | None = None) -> tuple[Finding, ...]:
    """Every fault of a name. `repair` puts right what can be; `accept`, a reason, keeps what cannot on record as looked into."""
    _refuse_unknown(tracking, name)
    examined, accepted = _Examined.of(tracking, name), _accepted(tracking, name)
    entries = list(_of_entries(examined))
    if repair and any(finding.repairable for finding in entries):
        entries = [_restored(examined, finding) if finding.repairable else finding for finding in entries]
        examined = _Examined.of(tracking, name)
    found = [
        *entries,
        *_of_copies(examined, repair),
        *_of_canaries(examined),
        *_of_proposals(examined),
        *_of_policy(tracking, name),
        *_of_champion(examined, repair, accepted),
    ]
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
        elif (edited := examined.edited) is not None and edited.number == number:
            assert edited.entry is not None
            yield Finding(
                f"entry-edited:{number}",
                f"Entry {number} of {name}, the last one, was edited and does not count, so that {champion}. What it said is "
                f"proved by the copy that {name}@{edited.entry.adapter_version} carries. `graftline doctor {name} --repair` "
                "writes it back.",
                repairable=True,
            )
        elif recorded.void is not None and not recorded.lost:
            yield Finding(
                f"entry-void:{number}:{recorded.digest[:12]}",
                f"Entry {number} of {name} does not count: {recorded.void}. No copy tells what was there, so that {champion}, by "
                f"entry {head.number}. Go on from there: promote or roll back as ever, or restore the entry from a backup of the "
                f"store. `graftline doctor {name} --accept REASON` keeps this on record.",
            )
    told = {recorded.number for recorded in (*examined.records, *examined.missing)}
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


def _of_copies(examined: _Examined, repair: bool) -> Iterator[Finding]:
    """Of the entry below each: what an edit of that one would be told from."""
    tags = {int(version.version): version.tags for version in examined.versions}
    for below, above in pairwise(examined.valid):
        if above.damage is not None or tags[above.number].get(BEFORE_TAG) == copied(below):
            continue
        if repair:
            with examined.tracking.client() as client:
                client.set_model_version_tag(ledger_name(examined.name), str(above.number), BEFORE_TAG, copied(below))
        yield Finding(
            f"copy-edited:{above.number}",
            f"Entry {above.number} of {examined.name} carries no right copy of entry {below.number}: an edit of that one could "
            f"not be undone. `graftline doctor {examined.name} --repair` writes it again.",
            repairable=True,
            state="repaired" if repair else "open",
        )


def _of_canaries(examined: _Examined) -> Iterator[Finding]:
    read = Trail().after(examined.versions)
    canary = read.trail.under_way(examined.name)
    if canary is not None and (sentence := CanaryLedger(examined.tracking, examined.name).exchanged(canary)) is not None:
        yield Finding(f"canary-exchanged:{canary.release.version}:{canary.id}", sentence)
    for record in read.canaries:
        if record.void is not None and (record.entry is None or "edited" in record.void):
            yield Finding(
                f"canary-void:{record.number}",
                f"Entry {record.number} of {examined.name}, about a canary, does not count: {record.void}. Start the canary "
                f"again, if it should be under way. `graftline doctor {examined.name} --accept REASON` keeps this on record.",
            )


def _of_proposals(examined: _Examined) -> Iterator[Finding]:
    """Those that are not what their digest says. One that lapsed is whole."""
    digests = {0: "", **{recorded.number: recorded.digest for recorded in examined.valid}}
    for version in examined.versions:
        if PROPOSAL_TAG in version.tags and not is_whole(version.tags, digests):
            number, name = int(version.version), examined.name
            yield Finding(
                f"proposal-void:{number}",
                f"Entry {number} of {name}, a proposal, was edited, and nobody can approve it. Propose the release again: "
                f"`graftline promote`. `graftline doctor {name} --accept REASON` keeps this on record.",
            )


def _of_policy(tracking: Tracking, name: str) -> Iterator[Finding]:
    try:
        policies(tracking, name)
    except PolicyRefused as error:
        yield Finding("policy-unreadable", str(error))


def _of_champion(examined: _Examined, repair: bool, accepted: frozenset[str]) -> Iterator[Finding]:
    """Its entry, its version, its files and its alias, which stays where an entry that is gone put it until that is accepted."""
    tracking, name, version = examined.tracking, examined.name, examined.head.adapter_version
    ledger = Ledger(tracking, name)
    gone = [Finding(f"entry-gone:{one.number}", _gone_sentence(examined, one)) for one in examined.gone]
    yield from gone
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
        if (sentence := ledger.exchanged()) is not None:
            yield Finding(f"champion-exchanged:{version}:{examined.head.number}", sentence)
        else:
            yield from _of_files(tracking, ReleaseName(name, version), repair)
    drift = ledger.drift()
    if drift is not None and examined.edited is None and all(one.id in accepted for one in gone):
        finding = Finding(f"alias:{drift.champion}:{drift.alias}", drift.repair, repairable=True)
        if repair:
            ledger.point_alias()
            finding = replace(finding, state="repaired")
        yield finding


def _gone_sentence(examined: _Examined, gone: Recorded) -> str:
    assert gone.entry is not None
    name, made = examined.name, f"{examined.name}@{gone.entry.adapter_version}"
    return (
        f"{missing_sentence(name, gone, examined.head.adapter_version)} Find out who deleted it. To have {made} again, promote "
        f"it or roll back to it. To leave it, `graftline doctor {name} --accept REASON` keeps this on record; `--repair` then "
        "sets the alias."
    )


def _of_files(tracking: Tracking, champion: ReleaseName, repair: bool) -> Iterator[Finding]:
    """As the registry has them: a copy on this machine serves nobody else."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            load_release(replace(tracking, cache=Path(scratch)), champion.name, champion.version)
            return
        except (RegistryUnreachable, NoRoom):
            raise
        except RegistryError as error:
            sentence = f"The champion of {champion.name} cannot be loaded from the registry. {error}"
    identifier = f"champion-damaged:{champion.version}"
    if not has_copy(tracking, champion):
        yield Finding(identifier, sentence)
        return
    sentence += f" This machine has a whole copy: `graftline doctor {champion.name} --repair` writes it back."
    finding = Finding(identifier, sentence, repairable=True)
    if repair:
        try:
            write_back(tracking, champion)
            finding = replace(finding, state="repaired")
        except RegistryError as error:
            finding = Finding(identifier, f"{finding.sentence} That was tried, and did not help: {error}")
    yield finding


def _restored(examined: _Examined, finding: Finding) -> Finding:
    number = int(finding.id.partition(":")[2])
    told = examined.edited
    if told is None or told.number != number:
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
        tags = client.get_registered_model(name).tags
    stored = [*json.loads(tags.get(ACCEPTED_TAG, "[]")), *(json.loads(text) for _, text in added(tags, ACCEPTED_TAG))]
    return frozenset(str(one["id"]) for one in stored)


def _accept(tracking: Tracking, name: str, found: Sequence[Finding], reason: str) -> frozenset[str]:
    now, actor = datetime.now(UTC).isoformat(timespec="seconds"), current_actor()
    with tracking.client() as client:
        for one in found:
            add(client, name, ACCEPTED_TAG, json.dumps({"id": one.id, "actor": actor, "reason": reason, "created": now}))
    return frozenset(one.id for one in found)
