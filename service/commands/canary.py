"""`graftline canary start`, `share`, `status`, `stop` and `finish`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from registry.canary import CanaryLedger, release_of
from registry.canary_chain import Bounds, Canary, checked_bounds
from registry.errors import PromotionRefused
from registry.home import home_directory
from registry.names import checked_name, current_actor, resolve
from registry.printable import printable
from registry.tracking import Tracking
from registry.verdicts import recorded_report
from service.audit import Act, AuditLog
from service.pace import checked_seconds

_SHARE, _MIRRORED = 0.1, 1.0  # where none is asked for


def start(
    reference: str,
    share: float | None,
    shadow: bool,
    bounds: Mapping[str, float | None],
    reason: str,
    override: bool,
    time_budget_s: float | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """0 when it is under way, 1 when the gate did not pass. A gate that passed already is not run again."""
    checked_seconds(time_budget_s)
    asked = checked_bounds(Bounds(), **bounds)
    share = share if share is not None else (_MIRRORED if shadow else _SHARE)
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    canaries = CanaryLedger(tracking, named.name)
    canaries.refuse_start(named.version, share, shadow, override=override)
    if override and not reason.strip():
        raise PromotionRefused(f"An override needs a reason, but none was given for {named}. Pass --reason.")
    report = recorded_report(tracking, named)
    if not override and (report is None or not report.passed):
        from service.commands.releases import gate_table, gated, refuse_early

        refuse_early(tracking, named, override, reason)
        console = Console(stderr=as_json, markup=False, width=None if sys.stdout.isatty() else 140)
        _, report = gated(tracking, named, reason, time_budget_s, None, place, console)
        if not as_json:
            console.print(gate_table(report))
        if not report.passed:
            if as_json:
                print(json.dumps({"release": str(named), "started": False, "report": report.model_dump(mode="json")}))
            else:
                console.print(f"{report.sentence}\n{named} is no canary")
            return 1
    with AuditLog(place).by_user("canary.start", str(named), current_actor()) as act:
        canary = canaries.start(named.version, share, report, shadow=shadow, bounds=asked, override=override, reason=reason)
        act.detail |= {"share": share, "shadow": shadow, "override": override, "reason": reason}
    _tell(canary, as_json)
    return 0


def share(name: str, share: float, reason: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    ledger = _ledger(name, home, tracking_uri)
    with _audited("canary.share", name, home) as act:
        canary = ledger.set_share(share, reason=reason)
        act.detail |= {"share": share, "reason": reason}
    _tell(canary, as_json)


def stop(name: str, reason: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    ledger = _ledger(name, home, tracking_uri)
    with _audited("canary.stop", name, home) as act:
        number, entry = ledger.end("stop", reason)
        act.detail |= {"version": entry.adapter_version, "reason": reason}
    if as_json:
        print(json.dumps({"entry": number, "name": name, "version": entry.adapter_version}))
    else:
        print(f"{release_of(name, entry)} is no canary any more (entry {number}); the champion answers everybody")


def finish(name: str, reason: str, override: bool, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    canaries = _ledger(name, home, tracking_uri)
    canary = canaries.expected()
    report = recorded_report(canaries.tracking, canary.release)
    with _audited("canary.finish", name, home) as act:
        made = canaries.finish(report, override=override, reason=reason, expected=canary)
        assert made.entry is not None
        act.detail |= {"version": made.entry.adapter_version, "override": override, "reason": reason}
    if as_json:
        print(json.dumps({"entry": made.number, "name": name, "version": made.entry.adapter_version}))
    else:
        print(f"{canary.release} is the champion of {name} (entry {made.number})")


def status(name: str, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    ledger = _ledger(name, home, tracking_uri)
    history = ledger.history()
    canary = history.trail.under_way(name)
    entries: list[JsonValue] = [
        {
            "number": number,
            "kind": entry.kind,
            "version": entry.adapter_version,
            "share": entry.share,
            "shadow": entry.shadow,
            "verdict": entry.gate_verdict,
            "actor": entry.actor,
            "reason": entry.reason,
            "created": entry.created,
        }
        for number, entry in history.valid
    ]
    warnings = [f"Entry {record.number} about a canary is void: {record.void}." for record in history.records if record.void]
    if canary is not None and (sentence := ledger.exchanged(canary)) is not None:
        warnings.insert(0, sentence)
    if as_json:
        under_way = None if canary is None else _described(canary)
        print(json.dumps({"name": name, "under_way": under_way, "history": entries, "warnings": list(warnings)}))
        return
    print(_sentence(canary) if canary is not None else f"no canary of {name} is under way")
    for number, entry in history.valid:
        said = (
            f"  {number}. {entry.kind} @{entry.adapter_version}, share {entry.share:g}{' as shadow' if entry.shadow else ''}, "
            f"by {entry.actor}, {entry.created}: {entry.reason or '-'}"
        )
        print(printable(said))
    for warning in warnings:
        print(printable(f"  ! {warning}"))


def _ledger(name: str, home: Path | None, tracking_uri: str | None) -> CanaryLedger:
    return CanaryLedger(Tracking.at(home_directory(home), tracking_uri).existing(), checked_name(name))


def _audited(act: str, name: str, home: Path | None) -> AbstractContextManager[Act]:
    return AuditLog(home_directory(home)).by_user(act, name, current_actor())


def _tell(canary: Canary, as_json: bool) -> None:
    print(json.dumps(_described(canary)) if as_json else _sentence(canary))


def _sentence(canary: Canary) -> str:
    what = "mirrors" if canary.shadow else "answers"
    bounds = canary.bounds
    return (
        f"{canary.release} {what} {canary.share:.3g} of the requests for {canary.release.name} beside {canary.champion}"
        f"{' (by an override)' if canary.overridden else ''}; rolled back where its error rate is beyond "
        f"{bounds.max_error_rate_rise:g} above the champion's"
        f"{'' if canary.shadow else f' or its latency beyond {bounds.max_latency_ratio:g} times'} (alpha {bounds.alpha:g})"
    )


def _described(canary: Canary) -> dict[str, JsonValue]:
    return {
        "release": str(canary.release),
        "champion": str(canary.champion),
        "share": canary.share,
        "shadow": canary.shadow,
        "since": canary.since,
        "overridden": canary.overridden,
        "bounds": canary.bounds.model_dump(),
    }
