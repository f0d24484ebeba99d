"""Proposals: under a policy that asks for two people, what one would promote waits here for another one's word.

They stand in NAME.releases under a tag of their own, which readers of promotions pass over. A proposal names the entry whose
champion it would replace, and its digest continues that entry's: it lapses when the champion moves, whoever moved it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from registry.gate_report import GateReport
from registry.ledger_chain import PROPOSAL_TAG, Head, add_version
from registry.names import ReleaseName, ledger_name
from registry.tracking import Tracking
from registry.versions import versions_after

DIGEST_TAG, REPORT_TAG = "graftline.proposal.entry_digest", "graftline.ledger.gate_report"


class Proposal(BaseModel):
    """What one person would promote. `champion_entry` is the number of the entry that it would follow, 0 for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion_entry: int
    adapter_version: int
    kind: Literal["promote", "override"]
    actor: str
    reason: str
    gate_verdict: str  # as in a promotion's entry
    gate_digest: str | None
    published_by: str | None  # None where the registry does not say
    created: str  # UTC, ISO 8601
    manifest: str | None = None  # SHA-256 of that of the files; None in proposals from before it was kept

    def said(self) -> dict[str, JsonValue]:
        return {key: value for key, value in self.model_dump().items() if value is not None or key != "manifest"}

    def chained(self, champion_digest: str) -> str:
        payload = json.dumps(self.said(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{champion_digest}\n{payload}".encode()).hexdigest()


@dataclass(frozen=True)
class Proposed:
    """A proposal in its place in the ledger, with the gate report that it was made with."""

    number: int
    proposal: Proposal
    report: GateReport | None = None

    def may_be_approved_by(self, actor: str) -> bool:
        return actor not in (self.proposal.actor, self.proposal.published_by)


def propose(
    tracking: Tracking,
    release: ReleaseName,
    head: Head,
    report: GateReport | None,
    *,
    passed: bool,
    actor: str,
    reason: str,
    published_by: str | None,
    manifest: str | None,
) -> Proposed:
    """Writes the proposal, or finds the same one that is open already."""
    proposal = Proposal(
        champion_entry=head.number,
        adapter_version=release.version,
        kind="promote" if passed else "override",
        actor=actor,
        reason=reason.strip(),
        gate_verdict=report.verdict if report is not None else "none",
        gate_digest=report.digest() if report is not None else None,
        published_by=published_by,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        manifest=manifest,
    )
    for earlier in open_proposals(tracking, release.name, head):
        if _asks(earlier.proposal) == _asks(proposal):
            return earlier
    tags = {PROPOSAL_TAG: proposal.model_dump_json(), DIGEST_TAG: proposal.chained(head.digest)}
    if report is not None:
        tags[REPORT_TAG] = report.canonical()
    return Proposed(add_version(tracking, release.name, release.version, tags), proposal, report)


def _asks(proposal: Proposal) -> tuple[int, str, str, str, str | None]:
    return proposal.adapter_version, proposal.kind, proposal.actor, proposal.reason, proposal.manifest


def open_proposals(tracking: Tracking, name: str, head: Head) -> tuple[Proposed, ...]:
    """Those that the head, the ledger's last entry, leaves open, oldest first. One that was edited is none."""
    with tracking.client() as client:
        later = versions_after(client, ledger_name(name), head.number)
    found = []
    for version in later:
        tags = version.tags
        try:
            proposal = Proposal.model_validate_json(tags[PROPOSAL_TAG])
        except (KeyError, ValueError):
            continue
        if proposal.champion_entry == head.number and tags.get(DIGEST_TAG) == proposal.chained(head.digest):
            report = signed_report(tags.get(REPORT_TAG), proposal.gate_digest)
            if (report is None) == (proposal.gate_digest is None):
                found.append(Proposed(int(version.version), proposal, report))
    return tuple(found)


def is_whole(tags: Mapping[str, str], digests: Mapping[int, str]) -> bool:
    """Whether a proposal is as it was written. `digests`: of the entries that count, by number; of any other none is known."""
    try:
        proposal = Proposal.model_validate_json(tags[PROPOSAL_TAG])
    except (KeyError, ValueError):
        return False
    below = digests.get(proposal.champion_entry)
    return below is None or tags.get(DIGEST_TAG) == proposal.chained(below)


def signed_report(report: str | None, digest: str | None) -> GateReport | None:
    """None where there is no report, or it is not the one of the digest.

    The digest is over the text: a report with fields that came later is still the one that was signed.
    """
    if report is None or hashlib.sha256(report.encode()).hexdigest() != digest:
        return None
    return GateReport.model_validate_json(report)
