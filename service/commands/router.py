"""`graftline router fit`, `evaluate` and `promote`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from registry.home import home_directory
from registry.ledger import Ledger
from registry.names import ReleaseName, current_actor, resolve
from registry.release import Release, load_release
from registry.tracking import Tracking
from service.audit import AuditLog
from service.elsewhere import elsewhere
from service.pace import Pace

if TYPE_CHECKING:
    from adapters.adapter_router import AdapterRouter
    from adapters.backbone import Backbone
    from engine.routed_engine import RoutedEngine
    from engine.torch_engine import TorchEngine
    from engine.twin import Precision
    from evaluation.evaluate import Row
    from tuning.router_fit import RouterReading
    from tuning.router_gate import Target

RECIPE_NAME = "auto"


@dataclass(frozen=True)
class Opened:
    """A router with the releases that it chooses among, loaded in one engine."""

    router: AdapterRouter
    backbone: Backbone
    engine: TorchEngine
    routed: RoutedEngine
    targets: tuple[Target, ...]
    protected: tuple[str, ...]


def fit(
    references: Sequence[str],
    out: Path,
    items: int | None,
    max_astray: float | None,
    seed: int | None,
    keep: Path | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Fits a router between the backbone and these releases into a directory that `graftline publish` takes."""
    from adapters.whole_file import whole_directory
    from evaluation.tasks import task_named
    from tuning.router_fit import RouterSpec, fit_router, write_router

    if out.exists():
        raise FileExistsError(f"A router is written into a directory that is not there yet, but {out} is. Name another one.")
    given = {"items": items, "max_astray": max_astray, "seed": seed}
    spec = RouterSpec(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    own = _lines(keep) if keep is not None else ()
    tracking = Tracking.at(home_directory(home), tracking_uri).existing()
    releases = [_release(tracking, reference) for reference in references]
    # Means over a prompt's tokens, by which domains are told apart: rounding moves them by less than a word does.
    backbone, engine = _engine_for(releases, "bfloat16")
    domains = {release.name: task_named(_domain_of(release)) for release in releases}
    if len(domains) < len(releases):
        raise ValueError("A router chooses among names, but two of these releases have one name. Name each once.")
    of_domains = {task.name for task in domains.values()}
    if len(of_domains) < len(domains):
        raise ValueError("A router tells domains apart, but two of these releases were fitted on one domain. Leave one out.")
    # What one release protects may be what another was fitted on: its questions are that one's, and not the backbone's too.
    others = [task for task in map(task_named, _protected(releases)) if task.name not in of_domains]
    found = fit_router(engine, backbone, domains, others, spec, own, partial(Pace(), "prompts read"))
    targets = {release.name: str(release.full_name) for release in releases}
    with whole_directory(out) as part:
        write_router(part, found, backbone, targets, domains, others, spec)
    if as_json:
        told = {"directory": str(out), "router": targets, "layer": found.router.layer, "threshold": found.router.threshold}
        print(json.dumps({**told, "select": asdict(found.reading), "shuffled_labels": asdict(found.shuffled)}))
        return
    print(_sentence(found.reading, found.router))
    print(f"fitted on shuffled labels, as a control: {found.shuffled.right:.3f} right")
    where = elsewhere(home_directory(home), tracking_uri)
    publish, promote = f"publish {out} --name {RECIPE_NAME}{where}", f"router promote {RECIPE_NAME}@VERSION{where}"
    print(f"written to {out}; next: graftline {publish}, graftline {promote}")


def evaluate(named: str, items: int, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    """Domains and protected families, routed against the backbone and against asking by name, on the select split."""
    from evaluation.tasks import task_named
    from tuning.router_gate import measured

    tracking = Tracking.at(home_directory(home), tracking_uri).existing()
    directory = Path(named) if Path(named).is_dir() else _release(tracking, named).directory
    with opened(tracking, directory) as router:
        protected = [task_named(name) for name in router.protected]
        domains, families = measured(router.engine, router.routed, router.backbone, router.targets, protected, items)
    if as_json:
        print(json.dumps({"router": named, "rows": [*map(_told, domains), *map(_told_family, families)]}))
        return
    table = Table(title=f"{named}, {items} items a task of the select split", title_justify="left")
    for heading in ("task", "backbone", "asked by name", "routed", "routed - backbone", "95 % interval"):
        table.add_column(heading)
    for target, own, sent in domains:
        table.add_row(f"{target.domain.name} ({target.name})", *_numbers(sent, own))
    for row in families:
        table.add_row(row.planned.task.name, *_numbers(row, None))
    console = Console(markup=False)
    console.width = max(console.width, 110)
    console.print(table)


def promote(
    reference: str,
    reason: str,
    override: bool,
    time_budget_s: float | None,
    gate: Path | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """0 when promoted, 1 when its gate did not pass. An undecided gate of the router is continued."""
    from registry.claim import alone, claimed
    from service.commands.releases import gate_policy, refuse_early, show_promotion, take
    from service.pace import checked_seconds
    from tuning.gating import gate_settings
    from tuning.router_gate import gate_router, router_policy

    checked_seconds(time_budget_s)
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    release = _release(tracking, reference)
    refuse_early(tracking, release.full_name, override, reason)
    ledger = Ledger(tracking, release.name)
    head = ledger.head()
    console = Console(stderr=as_json, markup=False, width=None if sys.stdout.isatty() else 140)
    act_of = AuditLog(place).by_user("release.promote", str(release.full_name), current_actor())
    with act_of as act, alone(place / "gates" / f"router-{release.full_name}.lock", str(release.full_name)):
        with opened(tracking, release.directory) as router:
            if not router.protected:
                raise ValueError(
                    f"A router is gated on the families that its releases protect, but those of {release.full_name} protect none "
                    "beside its own domains. Fit it anew between releases that protect some."
                )
            policy = gate_policy(tracking, release.name, router_policy(router.protected), gate, reason)
            settings = gate_settings(policy, time_budget_s=time_budget_s)
            report = gate_router(
                str(release.full_name),
                release.directory,
                router.engine,
                router.routed,
                router.backbone,
                router.targets,
                policy.protected,
                settings,
                place / "cache",
                begin=lambda conditions: claimed(tracking, release.full_name, conditions, settings),
                on_round=lambda so_far: console.print(f"round {so_far.rounds}: {so_far.sentence}", highlight=False),
            )
        done = take(ledger, release.version, report, head, override=override, reason=reason)
        if not report.passed and not override:
            from registry.verdicts import record_verdict

            record_verdict(tracking, release.full_name, report)
        act.detail |= {"promoted": done.promoted, "override": override, "verdict": report.verdict, "reason": reason}
    show_promotion(done, f"answers model={release.name}", console, as_json)
    return 0 if done.promoted else 1


@contextmanager
def opened(tracking: Tracking, directory: Path) -> Iterator[Opened]:
    """The router of a directory, and the releases that its manifest names, verified."""
    from adapters.adapter_router import AdapterRouter
    from engine.profile import Profile
    from engine.routed_engine import RoutedEngine
    from evaluation.tasks import task_named
    from registry.errors import UnknownRelease
    from registry.manifest import TrainingHashes, verify
    from tuning.gating import check_tasks
    from tuning.manifest import fingerprints_of
    from tuning.router_gate import ROUTED, Target

    manifest = verify(directory)
    router = AdapterRouter.load(directory)
    told = manifest.derived.get("router")
    if router is None or not isinstance(told, dict):
        raise UnknownRelease("A router has a router.json, but this release has none. Name one that `graftline router fit` wrote.")
    releases = [_release(tracking, str(reference)) for reference in told.values()]
    backbone, engine = _engine_for(releases)
    router.check(backbone)
    targets = []
    try:
        for release in releases:
            profile = str(release.full_name)
            check_tasks(release.manifest, profile)
            engine.load(profile, Profile.load(release.directory))
            training = fingerprints_of(TrainingHashes.read(release.directory))
            targets.append(Target(release.name, profile, profile, task_named(_domain_of(release)), training))
        routed = RoutedEngine(engine, router, {target.name: target.profile for target in targets}, ROUTED)
        protected = manifest.recipe.get("protected")
        names = tuple(map(str, protected)) if isinstance(protected, list) else ()
        yield Opened(router, backbone, engine, routed, tuple(targets), names)
    finally:
        engine.close()


def _release(tracking: Tracking, reference: str) -> Release:
    """NAME is its champion."""
    champion = ReleaseName(reference, Ledger(tracking, reference).champion_version()) if "@" not in reference else None
    found = champion or resolve(tracking, reference)
    return load_release(tracking, found.name, found.version)


def _engine_for(releases: Sequence[Release], precision: Precision = "float32") -> tuple[Backbone, TorchEngine]:
    from adapters.backbone import Backbone
    from engine.torch_engine import TorchEngine
    from registry.release import check_backbone

    backbone = Backbone.load(releases[0].manifest.backbone.name)
    for release in releases:
        check_backbone(release, backbone.fingerprint)
    return backbone, TorchEngine(backbone, max_rows=64, precision=precision)


def _domain_of(release: Release) -> str:
    found = release.manifest.recipe.get("domain")
    if not isinstance(found, str):
        raise ValueError(f"A router is fitted on domains, but {release.full_name} names none in its recipe. Leave it out.")
    return found


def _protected(releases: Sequence[Release]) -> list[str]:
    """Families that any of the releases protects, in order."""
    lists = [release.manifest.recipe.get("protected") for release in releases]
    return list(dict.fromkeys(str(name) for found in lists if isinstance(found, list) for name in found))


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _sentence(reading: RouterReading, router: AdapterRouter) -> str:
    found = ", ".join(f"{name or 'backbone'} {share:.3f}" for name, share in reading.by_class.items())
    interval = f"{reading.right:.3f} [{reading.right_low:.3f}, {reading.right_high:.3f}]"
    return (
        f"of {reading.count} prompts of the select split {interval} "
        f"are sent where they belong ({found}); of the backbone's {reading.astray:.3f} go astray "
        f"(at most {reading.astray_high:.3f}); calibration error {reading.calibration_error:.3f}; layer {router.layer}, "
        f"threshold {router.threshold:.3f}"
    )


def _numbers(sent: Row, own: Row | None) -> tuple[str, ...]:
    if sent.not_measurable:
        return "-", "-", "-", f"not measurable: {sent.not_measurable}", ""
    change = sent.change
    means = f"{_mean(sent.base.values):.3f}", "-" if own is None else f"{_mean(own.adapted.values):.3f}"
    return *means, f"{_mean(sent.adapted.values):.3f}", f"{change.mean:+.3f}", f"[{change.low:+.3f}, {change.high:+.3f}]"


def _told(found: tuple[Target, Row, Row]) -> Mapping[str, Any]:
    target, own, sent = found
    return {**sent.as_dict(), "name": target.name, "release": target.release, "asked_by_name": _mean(own.adapted.values)}


def _told_family(row: Row) -> Mapping[str, Any]:
    return row.as_dict()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
