"""The ledger: who made which version champion, from which state, why, and with which gate report.

Entries are versions of the registered model NAME.releases. One is valid if its parent is the last valid entry and its
digest continues the chain of digests: of several promoters that saw the same head, exactly one wins, with no lock and
no service but MLflow. The alias `champion` on NAME is a pointer for people, set after each entry and repairable.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from registry.errors import ApprovalRefused, AwaitsApproval, NothingToRollBackTo, PromotionRefused, UnknownRelease
from registry.gate_report import GateReport
from registry.last_entry import keep_copy, missing_entries, missing_sentence
from registry.ledger_chain import (
    ATTEMPTS,
    BEFORE_TAG,
    DIGEST_TAG,
    ENTRY_TAG,
    Head,
    Kind,
    LedgerEntry,
    Recorded,
    add_version,
    as_head,
    copied,
    fold,
    succession,
)
from registry.ledger_reader import champion_moved, no_champion, reader_of
from registry.names import CHAMPION, ReleaseName, checked_name, current_actor, ledger_name
from registry.policy import approvals_asked, policies, policy_of_report, refuse_laxer
from registry.proposals import REPORT_TAG, open_proposals, propose, signed_report
from registry.release import MANIFEST_TAG, PUBLISHER_TAG, other_files
from registry.tracking import Tracking
from registry.verdicts import manifest_of, record_verdict, version_tags
from registry.versions import versions_after


@dataclass(frozen=True)
class Drift:
    """The alias says something else than the ledger. `repair` is the sentence that names what to run."""

    champion: int | None
    alias: int | None
    repair: str


class Ledger:
    """Reads and writes one registered model's history.

    Every answer is read from the registry. What this process has proved before is not read again: a look asks for the newest
    entry, and for those in between; `records` alone reads all of it.
    """

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking, self.name = tracking, checked_name(name)
        self._reader = reader_of(tracking, name)

    def records(self) -> list[Recorded]:
        """Every entry in the order of its number, void ones with the reason, proved from the first one on."""
        with self.tracking.client() as client:
            return fold(Head(), versions_after(client, ledger_name(self.name), 0))

    def entries(self) -> tuple[Recorded, ...]:
        """The valid entries, oldest first."""
        return self._reader.look().valid

    def head(self) -> Head:
        return self._reader.look().trail.champion

    def champion_version(self) -> int:
        version = self.head().adapter_version
        if version is None:
            raise no_champion(self.name)
        return version

    def exchanged(self) -> str | None:
        """In a sentence: that the champion's version has other files now than those that were promoted. None: it has not.

        UnknownRelease where the version is gone.
        """
        head = self.head()
        if head.adapter_version is None or head.manifest is None:
            return None
        found = self._manifest(head.adapter_version)
        return None if found == head.manifest else other_files(ReleaseName(self.name, head.adapter_version), head.manifest, found)

    def promotions(self) -> int:
        """How often a gate that passed made a champion; a rollback or an override is none."""
        return sum(recorded.entry is not None and recorded.entry.kind == "promote" for recorded in self.entries())

    def override_in_force(self) -> LedgerEntry | None:
        """The entry that overrode the gate for the current champion; None when its gate passed, or there is no champion."""
        entries = [recorded.entry for recorded in self.entries() if recorded.entry is not None]
        made = [entry for entry in entries if entry.adapter_version == entries[-1].adapter_version and entry.kind != "rollback"]
        return made[-1] if made and made[-1].is_override else None

    def append(self, entry: LedgerEntry, expected_head: Head, report: GateReport | None = None) -> Recorded:
        """Compare-and-set: adds the entry on top of the expected head, or raises ChampionMoved and changes nothing."""
        if entry.parent != expected_head.number:
            raise ValueError(
                f"An entry's parent must be the expected head, but they are {entry.parent} and {expected_head.number}. "
                "Make the entry from that head."
            )
        read = self._reader.look()
        if read.trail.champion != expected_head:
            raise champion_moved(self.name, expected_head, read.trail.champion)
        digest = entry.chained(expected_head.digest)
        tags = {ENTRY_TAG: entry.stored(), DIGEST_TAG: digest}
        if read.valid:
            tags[BEFORE_TAG] = copied(read.valid[-1])
        if report is not None:
            tags[REPORT_TAG] = report.canonical()
        number = add_version(self.tracking, self.name, entry.adapter_version, tags)
        mine = next((recorded for recorded in self.entries() if recorded.number == number), None)
        if mine is None:
            raise champion_moved(self.name, expected_head, self.head())
        with suppress(UnknownRelease):  # a version that is deleted this moment carries no copy; the entry counts
            keep_copy(self.tracking, self.name, mine)
        self.point_alias()
        return mine

    def promote(
        self,
        version: int,
        report: GateReport | None,
        *,
        reason: str = "",
        actor: str | None = None,
        override: bool = False,
        expected_head: Head | None = None,
    ) -> Recorded:
        """Makes the version champion if its gate passed under the name's policy, or by an override.

        An override needs a reason, which stays visible for ever. AwaitsApproval where the policy asks for two people: then the
        version is proposed, and champion once another one approves.
        The report is kept with the version either way. `expected_head` is what the caller last saw (before a long gate,
        say); None means the head of this moment.
        """
        passed = self.refuse_unpromotable(version, report, reason=reason, override=override)
        head = expected_head or self.head()
        if self.asks_for_two(actor):
            raise self._proposed(version, report, head, passed, actor or current_actor(), reason)
        verdict = report.verdict if report is not None else "none"
        digest = report.digest() if report is not None else None
        kind: Kind = "promote" if passed else "override"
        entry = self._entry(head, version, kind, actor, reason, verdict, digest, self._manifest(version))
        return self.append(entry, head, report)

    def asks_for_two(self, actor: str | None = None) -> bool:
        """Whether the name's policy has another person approve what this one promotes."""
        return approvals_asked(policies(self.tracking, self.name), actor or current_actor()) > 1

    def approve(self, version: int, *, reason: str = "", actor: str | None = None) -> Recorded:
        """Makes a proposed version champion, as another person than who proposed or published it.

        It must still be promotable under the name's policy of this moment.
        """
        subject, head, by = ReleaseName(self.name, version), self.head(), actor or current_actor()
        found = [one for one in open_proposals(self.tracking, self.name, head) if one.proposal.adapter_version == version]
        if not found:
            raise ApprovalRefused(
                f"An approval needs an open proposal, but {subject} has none: it was never proposed, or its proposal lapsed when "
                f"the champion moved. Propose it: `graftline promote {subject}`."
            )
        approvable = [one for one in found if one.may_be_approved_by(by)]
        if not approvable:
            proposal = found[-1].proposal
            did = "proposed" if proposal.actor == by else "published"
            raise ApprovalRefused(
                f"A promotion takes another person than who proposed or published the release, but {by} {did} {subject}. "
                "Have somebody else approve it."
            )
        last = approvable[-1]
        made = last.proposal
        self.refuse_unpromotable(version, last.report, reason=made.reason, override=made.kind == "override")
        files = self._manifest(version)
        if made.manifest is not None and files != made.manifest:
            raise ApprovalRefused(
                f"An approval is of the files that were proposed, but those of {subject} were exchanged since. Look into who did "
                f"so, then propose it again: `graftline promote {subject}`."
            )
        entry = self._entry(head, version, made.kind, by, reason or made.reason, made.gate_verdict, made.gate_digest, files)
        signed = entry.model_copy(update={"proposal": last.number, "proposed_by": made.actor})
        return self.append(signed, head, last.report)

    def refuse_unpromotable(self, version: int, report: GateReport | None, *, reason: str, override: bool) -> bool:
        """PromotionRefused unless the version's gate passed under the name's policy, or is overridden with a reason.

        True when it passed. The report's verdict is kept with the version either way.
        """
        subject = str(ReleaseName(self.name, version))
        self._known(version)
        if report is not None and report.subject != subject:
            raise PromotionRefused(
                f"A promotion needs the gate report of that release, but this one is about {report.subject}, not {subject}. "
                f"Run the gate on {subject}."
            )
        if report is not None:
            record_verdict(self.tracking, ReleaseName(self.name, version), report)
        passed = report is not None and report.passed
        if not passed and not override:
            why = report.sentence if report is not None else "it was not gated."
            raise PromotionRefused(
                f"A release is promoted when its gate passes, but {subject} did not: {why} "
                "Publish a better one, run the gate with more time, or override it with a reason, which stays in the ledger."
            )
        if report is not None and not override and (history := policies(self.tracking, self.name)):
            bound = history[-1].policy
            refuse_laxer(policy_of_report(report, bound), bound, self.name)
        if not passed and not reason.strip():
            raise PromotionRefused(f"An override needs a reason, but none was given for {subject}. Pass --reason.")
        return passed

    def rollback(
        self, reason: str, to: int | None = None, *, actor: str | None = None, expected_head: int | None = None
    ) -> Recorded:
        """Makes an earlier champion champion again: `to`, or the one before the current. Nothing is deleted.

        `expected_head` is the number of the entry that the caller last saw: ChampionMoved where another one came after it. Under
        a policy of two people one is enough to go back to a champion that its gate or two people made.
        """
        if not reason.strip():
            raise PromotionRefused(f"A rollback needs a reason, but none was given for {self.name}. Pass --reason.")
        valid = self.entries()
        line = succession(valid)
        if not line:
            raise no_champion(self.name)
        self.refuse_moved(expected_head, as_head(valid[-1]))
        champions = self.earlier_champions()
        lone = self._by_one_override(valid) if self.asks_for_two(actor) else set[int]()
        before = [version for version in line[:-1] if version in champions]
        # Where all of them became champions by an override of one, the last is what is refused below, with the way to approve it.
        earlier = [version for version in before if version not in lone] or before
        target = to if to is not None else (earlier[-1] if earlier else None)
        if target is None or target not in champions:
            known = ", ".join(map(str, champions)) or "none"
            raise NothingToRollBackTo(
                f"A rollback returns to an earlier champion, but {self.name} has {known} and {target or 'the previous one'} was "
                "asked for. Promote a version through the gate instead."
            )
        if target in lone:
            raise ApprovalRefused(
                f"By the policy of {self.name} one person alone goes back to a champion that its gate or two people made, but "
                f"{self.name}@{target} became one by an override of one. Name another version, or have it approved: "
                f'`graftline promote {self.name}@{target} --override --reason "..."`.'
            )
        made = next(r.entry for r in reversed(valid) if r.entry is not None and r.entry.adapter_version == target)
        head = as_head(valid[-1])
        entry = self._entry(head, target, "rollback", actor, reason, made.gate_verdict, made.gate_digest, made.manifest)
        return self.append(entry, head)

    @staticmethod
    def _by_one_override(valid: Iterable[Recorded]) -> set[int]:
        """Versions that were never champion by a gate that passed or by the word of two people."""
        entries = [recorded.entry for recorded in valid if recorded.entry is not None]
        sound = {entry.adapter_version for entry in entries if entry.kind == "promote" or entry.proposal is not None}
        return {entry.adapter_version for entry in entries} - sound

    def earlier_champions(self) -> list[int]:
        """Versions that were champion and are not now, in the order of their numbers, without those that were deleted."""
        valid = self.entries()
        champions = {recorded.entry.adapter_version for recorded in valid if recorded.entry is not None}
        return [version for version in sorted(champions - {self.head().adapter_version}) if self._has(version)]

    def report_of(self, number: int) -> GateReport | None:
        """The gate report that entry `number` was made with; None when there was none, or it is not the one that was signed."""
        with self.tracking.client() as client:
            tags = client.get_model_version(ledger_name(self.name), str(number)).tags
        return signed_report(tags.get(REPORT_TAG), LedgerEntry.model_validate_json(tags[ENTRY_TAG]).gate_digest)

    def alias_version(self) -> int | None:
        """Where the alias `champion` points; None when there is none."""
        from mlflow.exceptions import MlflowException

        with self.tracking.client() as client:
            try:
                return int(client.get_model_version_by_alias(self.name, CHAMPION).version)
            except MlflowException as error:
                if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                    return None
                raise

    def point_alias(self) -> None:
        """Sets the alias to the ledger's champion, again if the champion moved meanwhile. Also the repair of drift."""
        for _ in range(ATTEMPTS):
            head = self.head()
            with self.tracking.client() as client:
                if head.adapter_version is None:
                    client.delete_registered_model_alias(self.name, CHAMPION)
                else:
                    client.set_registered_model_alias(self.name, CHAMPION, str(head.adapter_version))
            if self.head().number == head.number:
                return

    def drift(self) -> Drift | None:
        """None when the alias says what the ledger says."""
        champion, alias = self.head().adapter_version, self.alias_version()
        if champion == alias:
            return None
        if missing := missing_entries(self.tracking, self.name, self.head()):
            said = missing_sentence(self.name, missing[0], champion)
            return Drift(champion, alias, f"{said} Run `graftline doctor {self.name}`.")
        if alias is None:
            repair = f"The alias {CHAMPION!r} of {self.name} is gone; {self.name}@{champion} is still served. "
        elif alias in self.earlier_champions():
            repair = (
                f"The alias {CHAMPION!r} points to {self.name}@{alias}, an earlier champion: it was moved back, or whoever made "
                f"{self.name}@{champion} champion was cut off before it moved; {self.name}@{champion} is served. "
            )
        else:
            served = f"{self.name}@{champion} is served" if champion is not None else "nothing is served"
            repair = f"The alias {CHAMPION!r} was moved to {self.name}@{alias}, which the ledger did not promote; {served}. "
            repair += f"To gate and promote it: graftline promote {self.name}@{alias}. "
        way_out = f"`graftline doctor {self.name} --repair`, or the next promotion or rollback, sets the alias again."
        return Drift(champion, alias, repair + way_out)

    def _entry(
        self,
        head: Head,
        version: int,
        kind: Kind,
        actor: str | None,
        reason: str,
        verdict: str,
        digest: str | None,
        manifest: str | None,
    ) -> LedgerEntry:
        return LedgerEntry(
            parent=head.number,
            adapter_version=version,
            kind=kind,
            actor=actor or current_actor(),
            reason=reason.strip(),
            gate_verdict=verdict,
            gate_digest=digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            manifest=manifest,
        )

    def _proposed(
        self, version: int, report: GateReport | None, head: Head, passed: bool, actor: str, reason: str
    ) -> AwaitsApproval:
        current = self.head()
        if current != head:
            raise champion_moved(self.name, head, current)
        subject = ReleaseName(self.name, version)
        tags = version_tags(self.tracking, subject)
        publisher, files = tags.get(PUBLISHER_TAG), tags.get(MANIFEST_TAG)
        made = propose(
            self.tracking,
            subject,
            head,
            report,
            passed=passed,
            actor=actor,
            reason=reason,
            published_by=publisher,
            manifest=files,
        )
        others = " and ".join(dict.fromkeys(name for name in (actor, publisher) if name))
        return AwaitsApproval(
            f"{subject} is proposed (entry {made.number}) and not yet champion: the policy of {self.name} asks for two people. "
            f"Somebody else than {others} approves it: `graftline approve {subject}`."
        )

    def _known(self, version: int) -> None:
        version_tags(self.tracking, ReleaseName(self.name, version))

    def _manifest(self, version: int) -> str | None:
        return manifest_of(self.tracking, ReleaseName(self.name, version))

    def _has(self, version: int) -> bool:
        try:
            self._known(version)
        except UnknownRelease:
            return False
        return True

    def refuse_moved(self, expected: int | None, head: Head) -> None:
        """ChampionMoved unless the entry of that number is the head; None expects nothing."""
        if expected is not None and expected != head.number:
            seen = next((as_head(recorded) for recorded in self.entries() if recorded.number == expected), Head(expected))
            raise champion_moved(self.name, seen, head)
