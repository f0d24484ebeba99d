"""Canaries by the ledger: starting, growing, ending one. Of several that act on the same state exactly one wins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from registry.canary_chain import (
    DIGEST_TAG,
    Bounds,
    Canary,
    CanaryEntry,
    CanaryHead,
    CanaryKind,
    CanaryRecord,
    Trail,
    check_share,
)
from registry.errors import ApprovalRefused, CanaryMoved, CanaryRefused, NoCanary, PromotionRefused, UnknownRelease
from registry.gate_report import GateReport
from registry.ledger import Ledger
from registry.ledger_chain import CANARY_TAG, Recorded, add_version
from registry.ledger_reader import no_champion
from registry.names import ReleaseName, current_actor, ledger_name
from registry.policy import approvals_asked, canary_alone, policies
from registry.proposals import open_proposals
from registry.tracking import Tracking
from registry.verdicts import manifest_of
from registry.versions import versions_after


@dataclass(frozen=True)
class CanaryHistory:
    """Every entry about canaries in the order of its number, and what they leave under way."""

    records: tuple[CanaryRecord, ...]
    trail: Trail

    @property
    def valid(self) -> tuple[tuple[int, CanaryEntry], ...]:
        return tuple((one.number, one.entry) for one in self.records if one.entry is not None and one.void is None)


class CanaryLedger:
    """Reads and writes one registered model's canaries. Holds nothing itself: every answer is read from the registry."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.champions = Ledger(tracking, name)
        self.tracking, self.name = tracking, name

    def history(self) -> CanaryHistory:
        with self.tracking.client() as client:
            read = Trail().after(versions_after(client, ledger_name(self.name), 0))
        return CanaryHistory(read.canaries, read.trail)

    def under_way(self) -> Canary | None:
        return self.history().trail.under_way(self.name)

    def exchanged(self, canary: Canary) -> str | None:
        """In a sentence: that its version has other files now than at its start, or is gone. None: neither."""
        try:
            found = manifest_of(self.tracking, canary.release)
        except UnknownRelease:
            found = None
        return canary.exchanged(found)

    def expected(self) -> Canary:
        """What is under way; NoCanary when nothing is."""
        return self._going()[1]

    def refuse_start(self, version: int, share: float, shadow: bool, *, override: bool = False, actor: str | None = None) -> None:
        """What would be refused after a gate is refused before it."""
        check_share(share, shadow)
        trail = self.history().trail
        self._startable(trail, version)
        if not shadow:
            self._refuse_alone(trail, version, share, override, actor)

    def start(
        self,
        version: int,
        share: float,
        report: GateReport | None,
        *,
        shadow: bool = False,
        bounds: Bounds | None = None,
        override: bool = False,
        reason: str = "",
        actor: str | None = None,
    ) -> Canary:
        """Gives the version a share of the name's traffic, or (`shadow`) a mirror of it. It must be promotable.

        As with a promotion: its gate passed under the name's policy, or it is overridden with a reason, which stays visible.
        Under a policy of two people another one has proposed it, unless the gate passed and the share is at most `canary_alone`.
        Nobody reads what a shadow says, so that one person may start it.
        """
        passed = self.champions.refuse_unpromotable(version, report, reason=reason, override=override)
        check_share(share, shadow)
        trail = self.history().trail
        self._startable(trail, version)
        if not shadow:
            self._refuse_alone(trail, version, share, not passed, actor)
        entry = CanaryEntry(
            parent=trail.canary.number,
            champion_entry=trail.champion.number,
            adapter_version=version,
            kind="start",
            share=share,
            shadow=shadow,
            bounds=bounds or Bounds(),
            actor=actor or current_actor(),
            reason=reason.strip(),
            gate_verdict=report.verdict if report is not None else "none",
            gate_digest=report.digest() if report is not None else None,
            overridden=not passed,
            created=_now(),
            manifest=manifest_of(self.tracking, ReleaseName(self.name, version)),
        )
        return self._under_way(self._append(entry, trail.canary), version)

    def set_share(self, share: float, *, reason: str = "", actor: str | None = None) -> Canary:
        """More or less traffic for what is under way; whoever had it under the smaller share has it under the larger."""
        trail, canary = self._going()
        if share > canary.share:
            self._refuse_exchanged(canary)
        if share > canary.share and not canary.shadow:
            self._refuse_alone(trail, canary.release.version, share, canary.overridden, actor)
        return self._under_way(self._append_next("share", trail, reason, actor, share), canary.release.version)

    def end(
        self, kind: CanaryKind, reason: str, *, actor: str | None = None, expected: Canary | None = None
    ) -> tuple[int, CanaryEntry]:
        """Compare-and-set: takes away its traffic. CanaryMoved when `expected` is no longer what is under way."""
        if kind in ("stop", "rollback") and not reason.strip():
            raise PromotionRefused(f"A canary's end needs a reason, but none was given for {self.name}. Pass --reason.")
        trail, canary = self._going()
        if expected is not None and canary.id != expected.id:
            raise self._moved(trail.canary)
        last = self._append_next(kind, trail, reason, actor)
        assert last.canary.entry is not None
        return last.canary.number, last.canary.entry

    def finish(
        self,
        report: GateReport | None,
        *,
        override: bool = False,
        reason: str = "",
        actor: str | None = None,
        expected: Canary | None = None,
    ) -> Recorded:
        """Makes the canary champion: a promotion like any other, refused like any other.

        Its end is written first: a rollback that another process writes at the same moment then wins or loses as a whole.
        """
        trail, canary = self._going()
        if expected is not None and canary.id != expected.id:
            raise self._moved(trail.canary)
        version = canary.release.version
        self._refuse_exchanged(canary)
        self.champions.refuse_unpromotable(version, report, reason=reason, override=override)
        if not self.champions.asks_for_two(actor):  # it goes on where its promotion waits for another person
            self._append_next("finish", trail, reason, actor)
        return self.champions.promote(
            version, report, reason=reason, actor=actor, override=override, expected_head=trail.champion
        )

    def _going(self) -> tuple[Trail, Canary]:
        history = self.history()
        canary = history.trail.under_way(self.name)
        if canary is not None:
            return history.trail, canary
        raise NoCanary(
            f"That needs a canary under way, but {self.name} has none{_ended(history)}. Start one with "
            f"`graftline canary start {self.name}@VERSION`."
        )

    def _startable(self, trail: Trail, version: int) -> None:
        if trail.champion.adapter_version is None:
            raise no_champion(self.name)
        if version == trail.champion.adapter_version:
            raise CanaryRefused(
                f"A canary is another version than the champion, but {self.name}@{version} is the champion. Name another one."
            )
        canary = trail.under_way(self.name)
        if canary is not None:
            raise CanaryRefused(
                f"A name has one canary at a time, but {canary.release} is under way as {canary.word} with a share of "
                f"{canary.share:g}. Change its share (`graftline canary share {self.name} SHARE`), or end it with "
                f"`graftline canary stop {self.name} --reason ...` or `graftline canary finish {self.name}`."
            )

    def _refuse_exchanged(self, canary: Canary) -> None:
        if (sentence := self.exchanged(canary)) is not None:
            raise CanaryRefused(sentence)

    def _refuse_alone(self, trail: Trail, version: int, share: float, overridden: bool, actor: str | None) -> None:
        """ApprovalRefused for traffic that takes two people, where no other one has proposed the version."""
        by = actor or current_actor()
        history = policies(self.tracking, self.name)
        alone = 0.0 if overridden else canary_alone(history, by)
        if approvals_asked(history, by) == 1 or share <= alone:
            return
        proposed = open_proposals(self.tracking, self.name, trail.champion)
        found = [one for one in proposed if one.proposal.adapter_version == version]
        if overridden:
            found = [one for one in found if one.proposal.kind == "override"]
        if any(one.may_be_approved_by(by) for one in found):
            return
        subject = ReleaseName(self.name, version)
        whose = f"{by} proposed or published it" if found else "nobody has proposed it"
        asked = f"a share of {share:g} without a gate that passed" if overridden else f"a share of {share:g}"
        raise ApprovalRefused(
            f"By the policy of {self.name} one person alone gives a canary at most a share of {alone:g}, "
            f"but {by} asked for {asked} for {subject}, and {whose}. One proposes it (`graftline promote {subject}`); then "
            "another one, who did not publish it either, starts the canary or raises its share."
        )

    def _append_next(self, kind: CanaryKind, trail: Trail, reason: str, actor: str | None, share: float | None = None) -> Trail:
        last = trail.canary.entry
        assert last is not None
        if share is not None:
            check_share(share, last.shadow)
        changes = {
            "parent": trail.canary.number,
            "kind": kind,
            "share": last.share if share is None else share,
            "reason": reason.strip(),
            "actor": actor or current_actor(),
            "created": _now(),
        }
        return self._append(CanaryEntry.model_validate({**last.model_dump(), **changes}), trail.canary)

    def _append(self, entry: CanaryEntry, expected: CanaryHead) -> Trail:
        tags = {CANARY_TAG: entry.stored(), DIGEST_TAG: entry.chained(expected.digest)}
        number = add_version(self.tracking, self.name, entry.adapter_version, tags)
        history = self.history()
        mine = next(record for record in history.records if record.number == number)
        if mine.void is not None:
            raise self._moved(history.trail.canary)
        return history.trail

    def _under_way(self, trail: Trail, version: int) -> Canary:
        canary = trail.under_way(self.name)
        if canary is None or canary.release.version != version:  # ended again before it could be read
            raise self._moved(trail.canary)
        return canary

    def _moved(self, winner: CanaryHead) -> CanaryMoved:
        said, entry = "its champion moved", winner.entry
        if entry is not None:
            said = f"{entry.actor} wrote {entry.kind!r} about {release_of(self.name, entry)} (entry {winner.number})"
        return CanaryMoved(
            f"A canary's entry builds on what was seen, but {self.name} moved meanwhile: {said}. Look at it with "
            f"`graftline canary status {self.name}`, then try again."
        )


def release_of(name: str, entry: CanaryEntry) -> ReleaseName:
    return ReleaseName(name, entry.adapter_version)


def _ended(history: CanaryHistory) -> str:
    entry = history.trail.canary.entry
    if entry is None:
        return ""
    if entry.is_under_way:
        return f" (the last one, version {entry.adapter_version}, ended when the champion moved)"
    return f" (the last one, version {entry.adapter_version}, ended by {entry.kind}: {entry.reason or 'no reason given'})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
