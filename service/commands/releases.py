"""`graftline publish`, `promote` and `rollback`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.status import Status as RichStatus
from rich.table import Table
from rich.text import Text

from registry.errors import AwaitsApproval, PolicyRefused, PromotionRefused
from registry.home import home_directory
from registry.ledger import Ledger
from registry.manifest import MANIFEST, file_digest
from registry.names import ReleaseName, checked_name, current_actor, refuse_backbone_name, resolve
from registry.policy import Policy, policies, refuse_laxer, refuse_other_domain, set_policy
from registry.release import Release, load_release
from registry.release import publish as publish_release
from registry.tracking import Tracking
from service.audit import AuditLog
from service.commands.subject import served_backbone
from service.elsewhere import elsewhere
from service.gate_view import gate_view
from service.pace import checked_seconds
from service.way_out import way_out

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from engine.engine import Engine
    from registry.evidence import Evidence
    from registry.gate_report import GateReport, SeedVerdict
    from registry.gate_settings import GateSettings
    from registry.ledger_chain import Head
    from tuning.gating import Subject


def publish(
    source: str,
    name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
    trial: int | None = None,
    storage: str | None = None,
) -> None:
    place = home_directory(home)
    directory, run_id = _source(source, place, Tracking.at(place, tracking_uri), trial, storage)  # before a store is made for it
    tracking = Tracking.at(place, tracking_uri).create()
    release = publish_directory(tracking, directory, name, run_id)
    if as_json:
        print(json.dumps({"release": str(release.full_name), "directory": str(release.directory), "run_id": release.run_id}))
    else:
        command = "graftline router promote" if "router" in release.manifest.derived else "graftline promote"
        print(f"published {release.full_name}; next: {command} {release.full_name}{elsewhere(place, tracking.uri)}")


def publish_directory(tracking: Tracking, directory: Path, name: str | None = None, run_id: str | None = None) -> Release:
    """The name defaults to that of the recipe in the manifest."""
    from registry.manifest import read_manifest
    from tuning.being_read import being_read

    with being_read(directory):
        recipe_name = read_manifest(directory).recipe.get("name", "")
        return publish_release(tracking, checked_name(name or str(recipe_name)), directory, run_id)


def promote(
    reference: str,
    reason: str,
    override: bool,
    time_budget_s: float | None,
    gate_file: Path | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """0 when promoted, 1 when the gate did not pass. An undecided gate of the release is continued."""
    console = Console(stderr=as_json, markup=False, width=None if sys.stdout.isatty() else 140)
    checked_seconds(time_budget_s)
    place = home_directory(home)
    Tracking.at(place, tracking_uri).existing()  # before there is an audit log in a home that is none
    with AuditLog(place).by_user("release.promote", reference, current_actor()) as act:
        done = gate_and_promote(reference, reason, override, time_budget_s, gate_file, home, tracking_uri, console)
        act.detail |= {"promoted": done.promoted, "override": override, "verdict": done.report.verdict, "reason": reason}
        if done.waiting is not None:
            act.detail["proposed"] = True
    champion = f"is the champion of {done.report.subject.partition('@')[0]}"
    show_promotion(done, champion, console, as_json, way_out(done.report))
    return 0 if done.promoted else 1


class Promotion(NamedTuple):
    """How a promotion ended. `waiting`: its gate passed, and another person is asked for, in a sentence; None: nobody is."""

    report: GateReport
    promoted: bool
    waiting: str | None


def take(ledger: Ledger, version: int, report: GateReport, head: Head, *, override: bool, reason: str) -> Promotion:
    """The ledger's entry, or its proposal, where the gate passed or is overridden."""
    if not report.passed and not override:
        return Promotion(report, False, None)
    try:
        ledger.promote(version, report, reason=reason, override=override, expected_head=head)
    except AwaitsApproval as waiting:
        return Promotion(report, False, str(waiting))
    return Promotion(report, True, None)


def show_promotion(done: Promotion, champion: str, console: Console, as_json: bool, advice: str | None = None) -> None:
    """`champion` goes on after the release's name, where it was promoted; `advice` ends the text, where it was not."""
    report = done.report
    if as_json:
        proposed = {} if done.waiting is None else {"proposed": True}
        told = {"release": report.subject, "promoted": done.promoted, **proposed, "report": report.model_dump(mode="json")}
        print(json.dumps(told))
        return
    console.print(gate_table(report))
    console.print(report.sentence)
    console.print(done.waiting or f"{report.subject} {champion if done.promoted else 'was not promoted'}")
    if advice and not done.promoted and done.waiting is None:
        console.print(advice, highlight=False)


def gate_and_promote(
    reference: str,
    reason: str,
    override: bool,
    time_budget_s: float | None,
    gate_file: Path | None,
    home: Path | None,
    tracking_uri: str | None,
    console: Console,
    expected_head: int | None = None,
) -> Promotion:
    """The gate's report, and whether the ledger took the release; ChampionMoved where its head is not the expected entry."""
    checked_seconds(time_budget_s)
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    named = resolve(tracking, reference)
    refuse_early(tracking, named, override, reason)
    ledger = Ledger(tracking, named.name)
    head = ledger.head()
    ledger.refuse_moved(expected_head, head)
    release, report = gated(tracking, named, reason, time_budget_s, gate_file, place, console)
    return take(ledger, release.version, report, head, override=override, reason=reason)


def gated(
    tracking: Tracking,
    named: ReleaseName,
    reason: str,
    time_budget_s: float | None,
    gate_file: Path | None,
    home: Path,
    console: Console,
) -> tuple[Release, GateReport]:
    """The release behind the name and its gate's report, after running or continuing the gate under the name's policy."""
    from engine.torch_engine import TorchEngine
    from tuning.gating import Subject, gate_settings, recipe_policy

    release = load_release(tracking, named.name, named.version)
    if "router" in release.manifest.derived:
        raise PromotionRefused(
            f"A router has a gate of its own, but {named} came to that of adapters. Run `graftline router promote {named}`."
        )
    subject = Subject(str(release.full_name), release.directory, release.manifest)
    policy = gate_policy(tracking, release.name, recipe_policy(subject.recipe), gate_file, reason)
    backbone = served_backbone(release, partial(console.print, highlight=False))
    engine = TorchEngine(backbone, max_rows=64, precision=subject.recipe.evaluation.precision)
    settings = gate_settings(policy, time_budget_s=time_budget_s)
    return release, gate_release(tracking, release, engine, backbone, settings, policy, home, console)


def gate_release(
    tracking: Tracking,
    release: Release,
    engine: Engine,
    backbone: Backbone,
    settings: GateSettings,
    policy: Policy,
    home: Path,
    console: Console,
) -> GateReport:
    """Runs or continues the gate of a release, shows how far it is, and records the verdict with its evidence.

    A fresh gate spends what the name has left of alpha since its last promotion; see registry.evidence.
    """
    from registry.claim import alone, claimed
    from registry.earlier import earlier_domains
    from registry.policy import domain_name
    from registry.verdicts import record_verdict
    from tuning.gating import Subject

    named = release.full_name
    if policy.earlier_domains:
        domain, task = str(release.manifest.recipe.get("domain")), domain_name(release.manifest.task)
        found = earlier_domains(tracking, release.name, backbone.fingerprint, domain, task)
        for domain, champion in found.items():
            console.print(f"{domain} is served by {champion} on this backbone, and protected too", highlight=False)
        policy = policy.protecting(found)
    subject = Subject(str(named), release.directory, release.manifest)
    run = partial(_watched, engine=engine, backbone=backbone, settings=settings, policy=policy, home=home, console=console)
    with alone(_kept(home, release.directory).with_suffix(".lock"), str(named)):
        report = run(subject, begin=lambda conditions: claimed(tracking, named, conditions, settings))
        if report.passed and policy.training_seeds > 1:
            siblings = _siblings(subject, backbone, policy.training_seeds - 1, home, console)
            report = report.with_seeds(_gate_in_turn(siblings, run, console))
        record_verdict(tracking, named, report)
    return report


def _watched(
    subject: Subject,
    engine: Engine,
    backbone: Backbone,
    settings: GateSettings,
    policy: Policy,
    home: Path,
    console: Console,
    begin: Callable[[str], Evidence] | None = None,
) -> GateReport:
    """The gate of these files, begun or continued, on a bar or line by line; what it draws is kept in the home."""
    from registry.evidence import Evidence
    from tuning.gating import gate

    kept = _kept(home, subject.directory)
    with gate_view(console, subject.name, settings.time_budget_s) as view:
        return gate(
            subject,
            engine,
            backbone,
            settings,
            home / "cache",
            on_round=view.on_round,
            policy=policy,
            earlier=Evidence.kept(kept),
            begin=begin,
            kept=kept,
            on_share=view.on_share,
        )


def _siblings(subject: Subject, backbone: Backbone, count: int, home: Path, console: Console) -> Iterator[Subject]:
    """The recipe fitted under other seeds, each when it is asked for."""
    from tuning.siblings import sibling

    for number in range(1, count + 1):
        text = f"fitting training seed +{number}"
        with console.status(text) as shown:
            fitted = sibling(subject, backbone, number, home, partial(_show_share, shown, text))
        yield fitted


def _gate_in_turn(siblings: Iterable[Subject], run: Callable[[Subject], GateReport], console: Console) -> list[SeedVerdict]:
    """Until one does not pass.

    Every one must pass, so that each may use the whole alpha: the chance that all of them pass is no larger than that of one.
    """
    from registry.gate_report import SeedVerdict

    found: list[SeedVerdict] = []
    for number, subject in enumerate(siblings, start=1):
        report = run(subject)
        console.print(report.sentence, highlight=False)
        found.append(SeedVerdict(number=number, verdict=report.verdict, sentence=report.sentence))
        if not report.passed:
            break
    return found


def _kept(home: Path, directory: Path) -> Path:
    """Where the gate of these files keeps its rounds."""
    return home / "gates" / f"{file_digest(directory / MANIFEST)}.json"


def _show_share(shown: RichStatus, text: str, share: float) -> None:
    shown.update(f"{text}: {share:.0%}")


def gate_policy(tracking: Tracking, name: str, of_recipe: Policy, file: Path | None, reason: str) -> Policy:
    """The name's policy, or the file's where it is as strict; a laxer file with a reason becomes the policy of the name.

    A name that has none yet gets that of the recipe.
    """
    history = policies(tracking, name)
    if not history:
        set_policy(tracking, name, of_recipe, actor=current_actor(), reason="the recipe of the first release that was gated")
    bound = history[-1].policy if history else of_recipe
    asked = bound if file is None else bound.with_file(file)
    if asked.approvals > bound.approvals:
        raise PolicyRefused(
            f"How many people a promotion takes is the policy of a name, but {file} asks for it in one gate. Set it for {name}: "
            f'`graftline policy {name} --gate {file} --reason "..."`.'
        )
    if of_recipe.domain is not None:
        refuse_other_domain(of_recipe.domain, asked, f"the release of {name}")
    if file is None:
        if (where := bound.laxer_than(of_recipe)) is not None:
            print(f"the recipe asks for more than the policy of {name}, which holds: {where}", file=sys.stderr)
        return bound
    if asked.laxer_than(bound) and reason.strip():
        set_policy(tracking, name, asked, actor=current_actor(), reason=reason.strip())
    else:
        refuse_laxer(asked, bound, name)
    return asked


def rollback(name: str, reason: str, to: int | None, home: Path | None, tracking_uri: str | None, as_json: bool) -> None:
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri).existing()
    with AuditLog(place).by_user("release.rollback", name, current_actor()) as act:
        recorded = Ledger(tracking, checked_name(name)).rollback(reason, to)
        assert recorded.entry is not None
        act.detail |= {"to": recorded.entry.adapter_version, "reason": reason}
    if as_json:
        print(json.dumps({"entry": recorded.number, "name": name, "version": recorded.entry.adapter_version}))
    else:
        print(f"{name}@{recorded.entry.adapter_version} is the champion again (entry {recorded.number})")


def gate_table(report: GateReport) -> Table:
    from registry.gate_report import COLUMNS

    table = Table(
        title=f"gate of {report.subject}: {report.verdict} after {_rounds(report)}, {report.elapsed_s:.0f} s, {_alpha(report)}",
        title_justify="left",
        caption=Text("\n".join(_below(report))),
        caption_justify="left",
    )
    for heading in COLUMNS:
        table.add_column(heading)
    for row in report.rows():
        table.add_row(*row)
    return table


def _below(report: GateReport) -> Iterator[str]:
    for name, reason in report.not_measurable.items():
        yield f"{name}: not measurable on this backbone: {reason}"
    if report.details.get("contamination") == 0:
        yield "no item repeats a training row"


def _rounds(report: GateReport) -> str:
    return f"{report.rounds} rounds" + (f" ({report.rounds_before} of an earlier gate)" if report.rounds_before else "")


def _alpha(report: GateReport) -> str:
    restarts = report.settings.restarts
    begun = f" (share {restarts + 1} of the name's alpha since its last promotion)" if restarts else ""
    return f"alpha {report.settings.candidate_alpha:.2g} a bound{begun}"


def refuse_early(tracking: Tracking, named: ReleaseName, override: bool, reason: str) -> None:
    """What would be refused after the gate is refused before it; and a gate that failed is not run again until it passes."""
    from registry.verdicts import report_of_same_files

    if override and not reason.strip():
        raise PromotionRefused(f"An override needs a reason, but none was given for {named}. Pass --reason.")
    earlier = report_of_same_files(tracking, named)
    if earlier is not None and earlier.verdict == "fail" and not override:
        raise PromotionRefused(
            f"Files whose gate failed stay failed, and those of {named} did: {earlier.sentence} "
            "Publish a better one, or override it with a reason, which stays in the ledger."
        )
    refuse_backbone_name(named.name, load_release(tracking, named.name, named.version).manifest.backbone.name)


def _source(source: str, home: Path, tracking: Tracking, trial: int | None, storage: str | None) -> tuple[Path, str | None]:
    """A directory as it is, or a trial of a study (the best one that is feasible, unless it is named) with its MLflow run."""
    directory = Path(source)
    if (directory / "manifest.json").is_file():
        return directory, None
    if (directory / "adapter" / "manifest.json").is_file():
        return directory / "adapter", None
    from tuning.candidates import brought, candidate_to_publish

    chosen = brought(candidate_to_publish(home, source, trial, storage), home, tracking)
    return chosen.directory, chosen.run_id
