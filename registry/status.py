"""Status: what every name serves, what waits, what happened, and where the alias and the ledger differ."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from registry.canary import CanaryLedger
from registry.canary_chain import Canary
from registry.database_url import shown
from registry.errors import UnknownRelease
from registry.ledger import Ledger
from registry.ledger_chain import Head, Recorded, as_head
from registry.names import ReleaseName, registered_names
from registry.policy import PolicyChange, policies
from registry.proposals import Proposed, open_proposals
from registry.release import FORMAT_TAG
from registry.tracking import Tracking
from registry.transfer import origin_of
from registry.verdicts import REPORT_TAG, VERDICT_TAG, recorded_report, version_tags
from registry.versions import newest_versions

NOT_GATED = "not gated"
_RECENT = 10


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionStatus(_Value):
    version: int
    verdict: str  # pass, fail, inconclusive or "not gated"
    created: str
    run_id: str | None
    aliases: tuple[str, ...]
    champion: bool
    overridden: bool  # was promoted at least once although its gate had not passed
    origin: str | None = None  # of an imported version: where it comes from


class HistoryEntry(_Value):
    number: int
    kind: str
    version: int
    verdict: str
    actor: str
    reason: str
    created: str


class ProposalStatus(HistoryEntry):
    sentence: str  # who proposed what, and what another person would run


class NameStatus(_Value):
    """`warnings` are sentences: drift of the alias, edited or lost entries, laxer policies, overrides in force."""

    name: str
    champion: int | None
    candidates: tuple[VersionStatus, ...]  # the newest versions first, the champion among them
    history: tuple[HistoryEntry, ...]  # valid entries, oldest first
    drift: str | None
    warnings: tuple[str, ...]
    proposals: tuple[ProposalStatus, ...] = ()  # those that wait for another person's approval, oldest first
    canary: str | None = None  # a sentence on what stands beside the champion; None: nothing does


class Status(_Value):
    uri: str  # without a password
    names: tuple[NameStatus, ...]


def status(tracking: Tracking) -> Status:
    """Every registered model by name. Reads only, and needs no torch."""
    return Status(uri=shown(tracking.uri), names=tuple(name_status(tracking, name) for name in registered_names(tracking)))


def name_status(tracking: Tracking, name: str) -> NameStatus:
    ledger = Ledger(tracking, name)
    records = ledger.records()
    history = tuple(_history(recorded) for recorded in records if recorded.void is None)
    champion = history[-1].version if history else None
    drift = ledger.drift()
    candidates = _candidates(tracking, name, champion, {entry.version for entry in history if entry.kind == "override"})
    # One that lost to a rival was told so, and harms nobody.
    void = [recorded for recorded in records if recorded.void and not recorded.lost]
    warnings = [f"Entry {recorded.number} of the ledger is void: {recorded.void}." for recorded in void]
    warnings.extend(
        f"Entry {recorded.number} of the ledger was {recorded.damage}: what it said is told from the copy in entry "
        f"{recorded.told_by}. Run `graftline doctor {name}`."
        for recorded in records
        if recorded.damage
    )
    warnings.extend(_policy_changes(policies(tracking, name)))
    warnings.extend(_overrides_in_force(name, champion, history))
    warnings.extend(_gated_otherwise(tracking, name, champion))
    canaries = CanaryLedger(tracking, name)
    trail = canaries.history().trail
    under_way = trail.under_way(name)
    valid = [recorded for recorded in records if recorded.void is None]
    proposals = open_proposals(tracking, name, as_head(valid[-1]) if valid else Head())
    if under_way is not None and (fault := canaries.exchanged(under_way)) is not None:
        warnings.insert(0, fault)
    if champion is not None and (fault := _of_champion(ledger, champion)) is not None:
        warnings.insert(0, fault)
    if drift is not None:
        warnings.insert(0, drift.repair)
    return NameStatus(
        name=name,
        champion=champion,
        candidates=candidates,
        history=history,
        drift=drift.repair if drift is not None else None,
        warnings=tuple(warnings),
        proposals=tuple(_proposal(name, one) for one in proposals),
        canary=None if under_way is None else _canary(under_way),
    )


def _of_champion(ledger: Ledger, champion: int) -> str | None:
    """That its version is gone, or has other files than those that were promoted."""
    try:
        return ledger.exchanged()
    except UnknownRelease:
        return f"{ledger.name}@{champion} is champion, but the version was deleted. Run `graftline doctor {ledger.name}`."


def _proposal(name: str, proposed: Proposed) -> ProposalStatus:
    proposal = proposed.proposal
    release = f"{name}@{proposal.adapter_version}"
    what = "proposed" if proposal.kind == "promote" else f"proposed past its gate ({proposal.gate_verdict})"
    return ProposalStatus(
        number=proposed.number,
        kind=proposal.kind,
        version=proposal.adapter_version,
        verdict=proposal.gate_verdict,
        actor=proposal.actor,
        reason=proposal.reason,
        created=proposal.created,
        sentence=f"{release} is {what} by {proposal.actor}, {proposal.created}: {proposal.reason or '-'}. Somebody else approves "
        f"it: graftline approve {release}",
    )


def _canary(canary: Canary) -> str:
    override = ", by an override" if canary.overridden else ""
    return f"{canary.release} is {canary.word} with a share of {canary.share:g} since {canary.since}{override}"


def _candidates(tracking: Tracking, name: str, champion: int | None, overridden: set[int]) -> tuple[VersionStatus, ...]:
    from mlflow.exceptions import MlflowException

    with tracking.client() as client:
        versions = newest_versions(client, name, _RECENT)
        if champion is not None and champion not in {int(version.version) for version in versions}:
            try:
                versions.append(client.get_model_version(name, str(champion)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was deleted, as a warning says
                    raise
        aliases = client.get_registered_model(name).aliases
    return tuple(
        VersionStatus(
            version=int(version.version),
            verdict=version.tags.get(VERDICT_TAG, NOT_GATED),
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            run_id=version.run_id or None,
            aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == int(version.version))),
            champion=int(version.version) == champion,
            overridden=int(version.version) in overridden,
            origin=_origin(version.tags),
        )
        for version in versions
    )


def _origin(tags: dict[str, str]) -> str | None:
    origin = origin_of(tags)
    return None if origin is None else origin.sentence


def _history(recorded: Recorded) -> HistoryEntry:
    assert recorded.entry is not None
    entry = recorded.entry
    return HistoryEntry(
        number=recorded.number,
        kind=entry.kind,
        version=entry.adapter_version,
        verdict=entry.gate_verdict,
        actor=entry.actor,
        reason=entry.reason,
        created=entry.created,
    )


def _gated_otherwise(tracking: Tracking, name: str, champion: int | None) -> list[str]:
    """A champion whose gate measured it on its backbone in the format of its fit, which is not the one that serves it."""
    if champion is None:
        return []
    release = ReleaseName(name, champion)
    try:
        tags = version_tags(tracking, release)
    except UnknownRelease:
        return []  # which is told by itself
    if FORMAT_TAG not in tags or REPORT_TAG not in tags:
        return []
    report = recorded_report(tracking, release)
    if report is None or report.details.get("backbone_format") == "full":
        return []
    return [
        f"{release} was fitted around its backbone in {tags[FORMAT_TAG]} and gated on it so, but it is served on the backbone in "
        f"its own dtype, which the gate measures now. Run `graftline promote {release}`."
    ]


def _overrides_in_force(name: str, champion: int | None, history: tuple[HistoryEntry, ...]) -> list[str]:
    made = next((entry for entry in reversed(history) if entry.version == champion and entry.kind != "rollback"), None)
    if made is None or made.kind != "override":
        return []
    return [f"{name}@{champion} is served by an override ({made.actor}: {made.reason}); its gate verdict was: {made.verdict}."]


def _policy_changes(history: tuple[PolicyChange, ...]) -> list[str]:
    changed = [(change, change.policy.laxer_than(before.policy)) for before, change in pairwise(history)]
    return [
        f"The gate's policy was made laxer in {where} by {change.actor}, {change.created}: {change.reason}."
        for change, where in changed
        if where is not None
    ]
